"""Pictures and results in buckets: the same files, byte by byte, as in folders, and nothing is read in vain.

`memory://` for most, and a bucket that counts what it gives. The slow test asks s3fs and a server of moto on the
loopback interface: pip install s3fs 'moto[server]'.
"""
import importlib.util, json, os, shutil, socket, subprocess, sys, tempfile, time
from pathlib import Path
import fsspec, numpy as np, pytest, tifffile
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from PIL import Image
from bcd_fast.core import InputError
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.commands.submit import bcd_submit
from bcd_fast.data import buckets
from bcd_fast.prediction.parts import merge_parts
from bcd_fast.prediction.predict import predict_folder, predict_part

WHAT = 'masks', 'probabilities', 'coco', 'geojson'
NAMES = 'a.png', 'north/7.png', 'north/7.tif', 'south/deep/9.png', 'scan.tif', 'scan_0.png'
GEO = [(33550, 12, 3, (2., 2., 0.), True), (33922, 12, 6, (0., 0., 0., 500000., 4000000., 0.), True)]


class Counted(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        Counting.given += end-start
        return self.fs.store[self.path].getvalue()[start:end]


class Counting(MemoryFileSystem):
    "Objects in memory that are read in ranges, as those of object stores; `given` counts the bytes."
    protocol, given = 'counted', 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace('counted://', 'memory://'))

    def _open(self, path, mode='rb', **kwargs):
        return Counted(self, path, mode, **kwargs) if mode == 'rb' else super()._open(path, mode, **kwargs)


@pytest.fixture(autouse=True)
def memory(finds_bright):
    "An empty bucket."
    fsspec.register_implementation('counted', Counting, clobber=True)
    Counting.given, fs = 0, fsspec.filesystem('memory')
    fs.store.clear()
    fs.pseudo_dirs[:] = ['']
    yield fs
    fs.store.clear()
    assert not buckets.STAND


def pattern(seed, shape=(32, 40)):
    "A picture of black and white pixels, which is its own mask."
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.uint8)*255


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    "Pictures in folders, one with a georeference, a stack, and a file that is no picture."
    top = tmp_path_factory.mktemp('archive')/'in'
    for i, name in enumerate(NAMES):
        (top/name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('.png'):
            Image.fromarray(pattern(i)).save(top/name)
    tifffile.imwrite(top/'north/7.tif', pattern(7), photometric='minisblack', extratags=GEO)
    tifffile.imwrite(top/'scan.tif', pattern(9, (3, 32, 40)), photometric='minisblack')
    (top/'south/broken.png').write_bytes(b'no picture')
    (top/'north/notes.doc').write_bytes(b'')
    return top


def put(folder, address):
    "Bring a folder to an address."
    fs, root = fsspec.core.url_to_fs(address)
    for p in sorted(folder.rglob('*')):
        if p.is_file():
            fs.pipe_file(f'{root}/{p.relative_to(folder).as_posix()}', p.read_bytes())
    return address


def files(place):
    "What is in a folder or at an address, but for records, which name other places."
    if isinstance(place, Path):
        found = {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob('*') if p.is_file()}
    else:
        fs, root = fsspec.core.url_to_fs(place)
        found = {k[len(root)+1:]: fs.cat_file(k) for k in fs.find(root)}
    return {k: v for k, v in found.items() if not Path(k).name.startswith(('manifest', '.lock')) and '-of-' not in k}


def record(address, name='manifest.jsonl'):
    "The first line of a record in a bucket, and the others."
    head, *lines = [json.loads(l) for l in fsspec.open(f'{address}/{name}').open().read().splitlines() if l]
    return head, lines


@pytest.fixture(scope='module')
def single(model, finds_bright, archive, tmp_path_factory):
    out = tmp_path_factory.mktemp('single')/'out'
    predict_folder(model, archive, out, .5, WHAT)
    return files(out)


@pytest.mark.parametrize('places', ['both', 'images', 'out'])
def test_the_same_as_in_folders(model, archive, single, tmp_path, places):
    images = put(archive, 'memory://in') if places != 'out' else archive
    out = 'memory://out/masks/' if places != 'images' else tmp_path/'out'
    told = predict_folder(model, images, out, .5, WHAT)
    assert (told['written'], told['skipped'], len(told['unreadable'])) == (8, 0, 1)
    assert f'{images}/south/broken.png cannot be read' in told['unreadable'][0]
    assert any('notes.doc left out' in n for n in told['notes'])
    assert not any(tempfile.gettempdir() in m for m in told['notes']+told['unreadable']) or places != 'both'
    assert files(out) == single


def test_one_picture(model, archive, single):
    put(archive, 'memory://in')
    told = predict_folder(model, 'memory://in/north/7.tif', 'memory://out', .5, ('masks',))
    assert told['written'] == 1 and files('memory://out') == {'7.tif': single['north/7.tif.tif']}
    _, (line,) = record('memory://out')
    assert line['path'] == 'memory://in/north/7.tif' and line['sha256'].startswith('created ')


def test_what_is_done_is_not_read_again(model, archive, monkeypatch):
    put(archive, 'memory://in')
    n, read, fetch = predict_folder(model, 'memory://in', 'memory://out', .5)['written'], [], buckets.fetch
    monkeypatch.setattr(buckets, 'fetch', lambda p: read.append(buckets.address_of(p)) or fetch(p))
    told = predict_folder(model, 'memory://in', 'memory://out', .5)
    assert (n, told['written'], told['skipped']) == (8, 0, 6)
    assert read == ['memory://out/manifest.jsonl', 'memory://in/south/broken.png']
    fsspec.filesystem('memory').pipe_file('/in/a.png', (archive/'north/7.png').read_bytes())
    fsspec.filesystem('memory').rm('/out/south/deep/9.png')
    told = predict_folder(model, 'memory://in', 'memory://out', .5)
    assert (told['written'], told['skipped']) == (2, 4)
    assert files('memory://out')['a.png'] == files('memory://out')['north/7.png.png']
    assert predict_folder(model, 'memory://in', 'memory://out', .6)['skipped'] == 0


def test_without_a_mark_the_content_tells(model, archive, monkeypatch):
    "A file system that says neither when nor what."
    monkeypatch.setattr(buckets, 'MARKS', ())
    put(archive, 'memory://in')
    predict_folder(model, 'memory://in', 'memory://out', .5)
    assert {len(l['sha256']) for l in record('memory://out')[1]} == {64}
    assert predict_folder(model, 'memory://in', 'memory://out', .5)['skipped'] == 6


@pytest.mark.parametrize('n', [2, 3])
def test_parts(model, archive, single, n):
    put(archive, 'memory://in')
    more = dict(nodata=None, key=None)
    for i in range(1, n):
        predict_part((i, n), model, 'memory://in', 'memory://out', .5, WHAT, more)
    joined = merge_parts('memory://out')
    assert [*joined['missing']] == [n]
    predict_part((n, n), model, 'memory://in', 'memory://out', .5, WHAT, more)
    told = predict_part((n, n), model, 'memory://in', 'memory://out', .5, WHAT, more)
    assert told['written'] == 0
    fsspec.filesystem('memory').rm('/out/a.png')
    joined = merge_parts('memory://out')
    assert joined['missing'] == {} and 'memory://out/a.png is not there any more' in joined['gone'][0]
    for i in range(1, n+1):
        predict_part((i, n), model, 'memory://in', 'memory://out', .5, WHAT, more)
    joined = merge_parts('memory://out')
    assert (joined['parts'], joined['images'], joined['gone'], len(joined['failed'])) == (n, 6, [], 1)
    assert joined['failed'][0].startswith('memory://in/south/broken.png')
    assert files('memory://out') == single
    with pytest.raises(InputError, match=f'memory://out holds parts of {n}'):
        predict_part((1, 5), model, 'memory://in', 'memory://out', .5, WHAT, more)


def refusing(monkeypatch, after):
    "A bucket that takes no masks any more."
    put_file, sent = MemoryFileSystem.put_file, []

    def refuse(self, local, remote, **kwargs):
        sent.append(remote)
        if len(sent) > after and not remote.endswith('jsonl'):
            raise ConnectionError('reset by https://me:word@host/x?sig=1234')
        return put_file(self, local, remote, **kwargs)
    monkeypatch.setattr(MemoryFileSystem, 'put_file', refuse)


def test_a_bucket_that_takes_no_more(model, archive, single, monkeypatch, capsys):
    put(archive, 'memory://in')
    with monkeypatch.context() as m:
        refusing(m, 4)
        assert bcd_predict([str(model), 'memory://in', '--out', 'memory://out', '--threshold', '.5']) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'cannot be written (reset by https://host/x)' in err
    assert 'memory://out/' in err and 'the same command goes on' in err
    _, lines = record('memory://out')
    there = files('memory://out')
    assert 0 < len(lines) < 6 and all(len(there[o]) == s for l in lines for o, s in l['outputs'].items())
    told = predict_folder(model, 'memory://in', 'memory://out', .5)
    assert (told['written']+sum(l['pages'] for l in lines), told['skipped']) == (8, len(lines))
    assert files('memory://out') == {k: v for k, v in single.items() if k in files('memory://out')}


def test_ctrl_c_keeps_the_record(model, archive):
    put(archive, 'memory://in')

    def stop(done, of):
        if done == 4:
            raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as m:
        m.setattr('bcd_fast.prediction.predict.SMALL', 2000) # each picture for itself
        with pytest.raises(KeyboardInterrupt):
            predict_folder(model, 'memory://in', 'memory://out', .5, say=stop)
    n = len(record('memory://out')[1])
    assert n > 0 and predict_folder(model, 'memory://in', 'memory://out', .5)['skipped'] == n


def test_what_is_sent_before_the_record_is_ours(model, archive):
    "A process that was killed between an upload and the next record."
    put(archive, 'memory://in')
    predict_folder(model, 'memory://in', 'memory://out', .5)
    before, fs = files('memory://out'), fsspec.filesystem('memory')
    fs.rm('/out/manifest.jsonl')
    assert predict_folder(model, 'memory://in', 'memory://out', .5)['written'] == 8
    assert files('memory://out') == before


def test_what_others_have_put_there_stays(model, archive, memory):
    put(archive, 'memory://in')
    mine = (archive/'a.png').read_bytes()
    memory.pipe_file('/out/a.png', mine)
    predict_folder(model, 'memory://in', 'memory://out', .5)
    assert memory.cat_file('/out/a.png') == mine and '/out/a.png.png' in memory.store
    memory.pipe_file('/out/north/7.png.png', mine+b'edited')
    told = predict_folder(model, 'memory://in', 'memory://out', .5)
    assert any('memory://out/north/7.png.png was changed since' in n for n in told['notes'])
    assert memory.cat_file('/out/north/7.png.png') == mine+b'edited'


@pytest.mark.parametrize('parts', [False, True])
def test_edited_annotations_stay(model, archive, memory, parts):
    "In a bucket as in a folder: those of now have the next name, run after run."
    def again():
        if not parts:
            return predict_folder(model, archive, 'memory://out', .5, ('masks', 'coco'))
        for i in (1, 2):
            predict_part((i, 2), model, archive, 'memory://out', .5, ('masks', 'coco'), dict(nodata=None, key=None))
        return merge_parts('memory://out')
    again()
    first = files('memory://out')
    assert not any('changed' in n for n in again()['notes']) and files('memory://out') == first
    edited = first['annotations.json'].replace(b'"object"', b'"Object"')
    memory.pipe_file('/out/annotations.json', edited)
    for _ in range(2):
        said = again()['notes']
        assert any(n.startswith('memory://out/annotations.json was changed since it was written') for n in said)
        assert files('memory://out')['annotations.json'] == edited
        assert files('memory://out')['annotations_1.json'] == first['annotations.json']


def test_results_in_the_tree_are_not_read(model, archive, memory):
    put(archive, 'memory://all/in')
    predict_folder(model, 'memory://all/in', 'memory://all/masks', .5)
    memory.pipe_file('/all/in/a//b.png', b'1')
    memory.pipe_file('/all/.hidden/b.png', b'1')
    told = predict_folder(model, 'memory://all', 'memory://out', .5)
    assert told['written'] == 8
    assert any('masks/a.png and 7 more left out: made by' in n for n in told['notes'])
    assert any('in/a//b.png left out: no file can be called so' in n for n in told['notes'])
    memory.rm('/all/in', recursive=True)
    with pytest.raises(InputError, match='memory://all holds no image but those that bcd_fast has made'):
        predict_folder(model, 'memory://all', 'memory://out', .5)


def test_names_that_only_a_bucket_has(model, archive, memory):
    "A picture that is called as a folder, folders that are passed over on this machine, names that lead out of it."
    data = (archive/'a.png').read_bytes()
    for name in ('b.png', 'a.png', 'a.png/b.png', 'x.prj/c.png', '.git/d.png', '../e.png', '/f.png', './g.png',
                 'h'*300+'.png'):
        memory.store[f'/in/{name}'] = MemoryFile(memory, f'/in/{name}', data)
    told = predict_folder(model, 'memory://in', 'memory://out', .5)
    assert [l['path'] for l in record('memory://out')[1]] == ['memory://in/b.png']
    assert sorted(m.split(' ')[0] for m in told['unreadable']) == ['memory://in/a.png', 'memory://in/a.png/b.png']
    assert 'and 3 more left out: no file can be called so' in told['notes'][-1]
    assert not Path(tempfile.gettempdir(), 'e.png').exists()


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "A TIFF in tiles, with a georeference, that is large for `small_is_less`."
    top, rng = tmp_path_factory.mktemp('large')/'in', np.random.default_rng(0)
    top.mkdir()
    pixels = np.kron(rng.integers(0, 2, (24, 16)).astype(np.uint8)*255, np.ones((64, 64), np.uint8))
    pixels ^= rng.integers(0, 64, pixels.shape, dtype=np.uint8) # so that codes do not make it small
    tifffile.imwrite(top/'scene.tif', pixels, tile=(256, 256), compression='zlib', extratags=GEO)
    return top


@pytest.fixture
def small_is_less(monkeypatch):
    "Pictures of a megapixel are large, files of a hundred kilobytes are read in windows, blocks are small."
    for module in ('tiles', 'predict'):
        monkeypatch.setattr(f'bcd_fast.prediction.{module}.SMALL', 2**20)
    monkeypatch.setattr(buckets, 'WINDOWED', 10**5)
    monkeypatch.setattr(buckets, 'BLOCK', 2**16)


def test_a_large_scene_is_read_in_windows(model, large, tmp_path, monkeypatch, small_is_less):
    monkeypatch.setattr(buckets, 'fetch', lambda p: pytest.fail(f'{p} was fetched'))
    put(large, 'counted://in')
    what = 'masks', 'probabilities', 'geojson', 'gpkg', 'cog', 'overlay'
    predict_folder(model, large, tmp_path/'out', .5, what)
    told = predict_folder(model, 'counted://in', 'counted://out', .5, what)
    far, here = files('counted://out'), files(tmp_path/'out')
    assert told['unreadable'] == [] and far.keys() == here.keys()
    assert all(far[k] == here[k] for k in here if not k.endswith('.gpkg')) # these hold the time
    assert told['notes'] and all('counted://in/scene.tif' in n for n in told['notes'])
    size = (large/'scene.tif').stat().st_size
    assert size < Counting.given < 3.5*size # for masks, and again for the overlay


def test_a_scene_of_another_sensor_is_refused_early(model, small_is_less):
    pixels = np.random.default_rng(0).integers(0, 256, (1600, 1600, 2), dtype=np.uint8)
    fs = fsspec.filesystem('counted')
    with fs.open('/in/two.tif', 'wb') as f:
        tifffile.imwrite(f, pixels, photometric='minisblack', planarconfig='contig', rowsperstrip=16)
    told = predict_folder(model, 'counted://in', 'counted://out', .5)
    assert told['written'] == 0 and 'two.tif' in told['unreadable'][0] and 'another sensor' in told['unreadable'][0]
    assert 0 < Counting.given < pixels.nbytes/20


def test_a_scene_whose_bucket_breaks_off(model, large, monkeypatch, capsys, small_is_less):
    put(large, 'counted://in')
    fetch_range = Counted._fetch_range

    def breaks(self, start, end):
        if Counting.given > 2**19:
            raise ConnectionError('reset')
        return fetch_range(self, start, end)
    monkeypatch.setattr(Counted, '_fetch_range', breaks)
    assert bcd_predict([str(model), 'counted://in', '--out', 'counted://out']) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'counted://in/scene.tif cannot be read (reset)' in err
    assert files('counted://out') == {}


def test_what_is_refused(model, archive, tmp_path, monkeypatch, capsys, memory):
    put(archive, 'memory://in')
    before = files('memory://in')
    monkeypatch.setitem(sys.modules, 's3fs', None)
    monkeypatch.chdir(tmp_path)
    for images, out, said in [
            ('memory://in', 'memory://in', 'lie one in the other'), ('memory://in', 'memory://in/masks', 'lie one in'),
            ('memory://in/north', 'memory://in', 'lie one in'), ('memory://in/a.png', 'memory://in', 'lie one in'),
            ('memory://none', 'memory://out', 'memory://none is not there'),
            ('memory://in', 'memory://in2/a.png', 'is a file'),
            ('s3://b/in', 'memory://out', 'pip install s3fs'), ('memory://in', 's3://b/out', 'pip install s3fs'),
            ('nothing://b/in', 'memory://out', 'fsspec knows no nothing://'),
            ('memory://in', 'file:///out', 'as a path'),
            ('s3://KEY:SECRET@b/in', 'memory://out', 'is not taken'),
            ('memory://in', 's3://b/out?token=SECRET', 'is not taken')]:
        memory.pipe_file('/in2/a.png', b'1')
        assert bcd_predict([str(model), images, '--out', out]) == 2
        told, err = capsys.readouterr()
        assert told == '' and err.count('\n') == 1 and said in err and 'SECRET' not in err, err
    for words, said in ((['--write', 'napari'], 'needs folders of this machine'),):
        assert bcd_predict([str(model), 'memory://in', '--out', 'memory://out', *words]) == 2
        assert said in capsys.readouterr().err
    for words in (['--merge', 'memory://none'], ['--merge', 's3://k:SECRET@b']):
        assert bcd_predict(words) == 2 and 'SECRET' not in capsys.readouterr().err
    assert files('memory://in') == before and list(tmp_path.iterdir()) == []


def test_a_closed_bucket(model, archive, monkeypatch, capsys):
    put(archive, 'memory://in')

    def closed(self, *args, **kwargs):
        raise PermissionError('Forbidden')
    with monkeypatch.context() as m:
        m.setattr(MemoryFileSystem, 'put_file', closed)
        assert bcd_predict([str(model), 'memory://in', '--out', 'memory://out']) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'cannot be written: there is no right to (Forbidden)' in err
    with monkeypatch.context() as m:
        m.setattr(MemoryFileSystem, 'get_file', closed)
        assert bcd_predict([str(model), 'memory://in', '--out', 'memory://out']) == 2
    assert 'memory://in/a.png cannot be read: there is no right to (Forbidden)' in capsys.readouterr().err


def test_submission_needs_a_folder_for_logs(model, archive, tmp_path, capsys, monkeypatch):
    put(archive, 'memory://in')
    monkeypatch.chdir(tmp_path)
    assert bcd_submit(['predict', str(model), 'memory://in', '--out', 'memory://out', '--parts', '2']) == 2
    assert 'memory://out takes no logs: give a folder of this machine as --logs' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_on_this_machine(model, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    put(archive, 'memory://in')
    predict_folder(model, 'memory://in', 'memory://out', .5, WHAT)
    assert list(tmp_path.iterdir()) == []


MOTO = os.environ.get('BCD_MOTO') or shutil.which('moto_server') or \
    next((p for p in [os.path.join(os.path.dirname(sys.executable), 'moto_server')] if os.path.exists(p)), None)
MISSING = [*([] if importlib.util.find_spec('s3fs') else ['s3fs']), *([] if MOTO else ['moto_server (BCD_MOTO)'])]


@pytest.fixture
def server(monkeypatch, tmp_path):
    "An S3 of moto on the loopback interface, with an empty bucket; the driver finds it by the environment."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    for name, value in dict(AWS_ACCESS_KEY_ID='KEYID', AWS_SECRET_ACCESS_KEY='SECRET', AWS_DEFAULT_REGION='us-east-1',
                            AWS_ENDPOINT_URL=f'http://127.0.0.1:{port}', AWS_CONFIG_FILE=str(tmp_path/'none'),
                            AWS_MAX_ATTEMPTS='1', NO_PROXY='127.0.0.1').items():
        monkeypatch.setenv(name, value)
    with open(tmp_path/'log', 'w') as log:
        p = subprocess.Popen([MOTO, '-H', '127.0.0.1', '-p', str(port)], stdout=log, stderr=log)
    try:
        for _ in range(300):
            with socket.socket() as s:
                if s.connect_ex(('127.0.0.1', port)) == 0:
                    break
            time.sleep(.2)
        fsspec.filesystem('s3', skip_instance_cache=True).mkdir('bucket')
        yield p
    finally:
        p.terminate()
        p.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f'not installed: {", ".join(MISSING)}')
def test_s3(model, archive, single, large, tmp_path, server, small_is_less, capsys):
    "What an object store says, lists and takes, by s3fs."
    put(archive, 's3://bucket/in')
    told = predict_folder(model, 's3://bucket/in', 's3://bucket/out', .5, WHAT)
    assert (told['written'], len(told['unreadable'])) == (8, 1) and files('s3://bucket/out') == single
    head, lines = record('s3://bucket/out')
    assert all(l['sha256'].startswith('ETag ') and l['path'].startswith('s3://bucket/in/') for l in lines)
    assert not {'KEYID', 'SECRET'} & {*json.dumps([head, *lines]).replace('"', ' ').split()}
    again = [str(model), 's3://bucket/in', '--out', 's3://bucket/masks', '--threshold', '.5']
    assert bcd_predict(again) == 2 and '8 pictures' in capsys.readouterr().out
    assert bcd_predict(again) == 2 and '6 files were finished before' in capsys.readouterr().out
    more = dict(nodata=None, key=None)
    for i in (1, 2):
        predict_part((i, 2), model, 's3://bucket/in', 's3://bucket/parts', .5, WHAT, more)
    assert merge_parts('s3://bucket/parts')['missing'] == {} and files('s3://bucket/parts') == single
    put(large, 's3://bucket/large')
    predict_folder(model, large, tmp_path/'out', .5)
    predict_folder(model, 's3://bucket/large', 's3://bucket/large-out', .5)
    assert files('s3://bucket/large-out') == files(tmp_path/'out')
    for images, out, said in (('s3://none/in', 's3://bucket/x', 's3://none/in is not there'),
                              ('s3://bucket/in', 's3://none/x', 'there is no such bucket'),
                              ('s3://bucket/in', 's3://bucket', 'lie one in')):
        assert bcd_predict([str(model), images, '--out', out]) == 2
        err = capsys.readouterr().err
        assert err.count('\n') == 1 and said in err, err
    server.terminate()
    server.wait(20)
    assert bcd_predict(again) == 2
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1) and 's3://bucket/in cannot be listed' in err, err
    assert 'KEYID' not in err and 'SECRET' not in err
