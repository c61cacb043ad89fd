"What a prediction writes: never over an input, under names of its own, whole or not at all, file by file."
import errno, json, os, threading
from importlib.util import find_spec
from pathlib import Path
import numpy as np, pytest, tifffile
from PIL import Image
from bcd_fast.core import InputError, only_one
from bcd_fast.commands.check import bcd_check
from bcd_fast.commands.eval import bcd_eval
from bcd_fast.commands.gallery import bcd_figures
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.prediction import predict as prediction
from bcd_fast.prediction.predict import predict_folder
from conftest import posix

pytestmark = pytest.mark.usefixtures('finds_bright')

WRITTEN = [w for w in prediction.OUTPUTS if w != 'gpkg' or find_spec('pyogrio')] # an extra of its own


def pattern(seed, pages=None):
    "A picture of black and white pixels, which is its own mask; or several."
    shape = (32, 40) if pages is None else (pages, 32, 40)
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.uint8)*255


def write(folder, **pictures):
    "Save pictures under names whose point is __; returns the folder."
    folder.mkdir(exist_ok=True)
    for name, a in pictures.items():
        path = folder/name.replace('__', '.')
        tifffile.imwrite(path, a, photometric='minisblack') if path.suffix == '.tif' else Image.fromarray(a).save(path)
    return folder


def mask(path):
    return tifffile.imread(path) if path.suffix == '.tif' else np.asarray(Image.open(path))


def record(out):
    "The lines of the record: name of an image -> line."
    lines = [json.loads(l) for l in (out/'manifest.jsonl').read_text().splitlines() if l]
    return {l['file']: l for l in lines[1:]}


def snapshot(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def said(model, capsys):
    "The command: exit status, output, errors."
    def says(*words):
        capsys.readouterr()
        status = bcd_predict([str(model), *map(str, words)])
        return (status, *capsys.readouterr())
    return says


@posix
@pytest.mark.parametrize('name', ('scan.png', 'scan.tif'))
@pytest.mark.parametrize('where', ('in', '.', 'in/../in', 'link'))
def test_no_picture_is_written_over(said, tmp_path, monkeypatch, name, where):
    folder = write(tmp_path/'in', **{name.replace('.', '__'): pattern(0)})
    (tmp_path/'link').symlink_to(folder)
    before = snapshot(folder)
    monkeypatch.chdir(folder if where == '.' else tmp_path)
    for images in (folder, folder/name):
        status, out, err = said(images, '--out', where)
        assert (status, out, err.count('\n')) == (2, '', 1) and 'choose another folder' in err
    assert snapshot(folder) == before


@posix
@pytest.mark.parametrize('link', (os.link, os.symlink))
def test_no_picture_is_written_over_by_a_link(said, tmp_path, link):
    folder = write(tmp_path/'in', a__png=pattern(0))
    (tmp_path/'out').mkdir()
    link(folder/'a.png', tmp_path/'out/a.png')
    status, _, err = said(folder, '--out', tmp_path/'out')
    assert status == 2 and 'which is read' in err
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['a.png']


@posix
def test_no_picture_is_written_over_where_it_really_is(said, tmp_path):
    "The folder holds links, and the masks would go where these lead."
    folder = write(tmp_path/'real', a__png=pattern(0))
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.png').symlink_to(folder/'a.png')
    before = snapshot(folder)
    assert said(tmp_path/'in', '--out', folder)[0] == 2
    assert snapshot(folder) == before


def test_what_lies_in_the_folder_of_results_stays(model, tmp_path):
    "Also when the run is made again, with other settings, or without its record."
    folder = write(tmp_path/'in', a__png=pattern(0), b__png=pattern(1))
    out = write(tmp_path/'out', a__png=pattern(9))
    mine = (out/'a.png').read_bytes()
    for threshold in (.5, .5, .6):
        predict_folder(model, folder, out, threshold)
        assert (out/'a.png').read_bytes() == mine
        assert {f: list(l['outputs']) for f, l in record(out).items()} == {'a.png': ['a.png.png'], 'b.png': ['b.png']}
    (out/'manifest.jsonl').unlink()
    predict_folder(model, folder, out)
    assert {p.name for p in out.glob('*.png')} == {'a.png', 'a.png.png', 'b.png'}


def test_what_comes_into_the_folder_of_results_later_stays(model, tmp_path):
    "A picture under the name of the next mask, and a mask that somebody has changed by hand."
    folder, out = write(tmp_path/'in', a__png=pattern(0)), tmp_path/'out'
    predict_folder(model, folder, out)
    write(folder, b__png=pattern(1))
    write(out, a__png=pattern(8), b__png=pattern(9))
    for threshold, written in ((.5, 2), (.5, 0), (.6, 2)):
        done = predict_folder(model, folder, out, threshold)
        assert done['written'] == written
        assert [str(out/'a.png') in n for n in done['notes']] == [True]*(written == 2 and threshold == .5)
        assert (mask(out/'a.png') == pattern(8)).all() and (mask(out/'b.png') == pattern(9)).all()
        assert (mask(out/'a.png.png') == pattern(0)).all() and (mask(out/'b.png.png') == pattern(1)).all()


def test_empty_folders_in_a_folder_are_told(model, tmp_path):
    folder = write(tmp_path/'in', a__png=pattern(0))
    (folder/'more').mkdir()
    for _ in range(2): # that of the results is there at the second time
        note, = predict_folder(model, folder, folder/'out')['notes']
        assert 'more left out: no picture' in note and 'out left' not in note.replace('more left out', '')


def test_a_file_of_holes_takes_no_time(said, tmp_path):
    folder = write(tmp_path/'in', a__png=pattern(0))
    with open(folder/'holes.npy', 'wb') as f:
        np.lib.format.write_array_header_1_0(f, dict(descr='|u1', fortran_order=False, shape=(2**20, 2**20)))
        f.truncate(f.tell()+2**40)
    status, told, err = said(folder, '--out', tmp_path/'out')
    assert status == 2 and told.startswith('1 pictures') and 'holes.npy cannot be read' in err
    holes = prediction.content_of(folder/'holes.npy')
    with open(folder/'holes.npy', 'r+b') as f:
        f.seek(2**39)
        f.write(b'1')
    assert prediction.content_of(folder/'holes.npy') != holes


NAMES = dict(
    pages=dict(scan__tif=pattern(0, 3), scan_0__png=pattern(1), scan_1__png=pattern(2)),
    stems=dict(a__png=pattern(0), a__tif=pattern(1), a__png__png=pattern(2)),
    kinds=dict(x__png=pattern(0), x__overlay__png=pattern(1), x__probability__png=pattern(2)),
    case=dict(A__png=pattern(0), a__png=pattern(1), a__tif=pattern(2)),
    accents={'e\u0301__png': pattern(0), 'é__png': pattern(1)},
    record=dict(manifest__jsonl__png=pattern(0), annotations__json__png=pattern(1)),
    numbers={'b-2__png': pattern(0), 'b__png': pattern(1), 'B__png': pattern(2), 'b__png-2__png': pattern(3)})


@pytest.mark.parametrize('case', NAMES)
def test_names_are_distinct_and_stay(model, tmp_path, case):
    folder, out = write(tmp_path/'in', **NAMES[case]), tmp_path/'out'
    every = ('masks', 'probabilities', 'geojson', 'overlay')
    done = predict_folder(model, folder, out, .5, every)
    assert not done['unreadable'] and done['written'] == sum(a.size for a in NAMES[case].values())/pattern(0).size
    lines = record(out)
    names = [o for l in lines.values() for o in l['outputs']]
    assert len(names) == 4*done['written'] == len({prediction.folded(n) for n in names})
    assert all((out/n).stat().st_size == size for l in lines.values() for n, size in l['outputs'].items())
    for name, a in NAMES[case].items():
        masks = [*lines[name.replace('__', '.')]['outputs']][::4]
        for m, page in zip(masks, a if a.ndim == 3 else [a], strict=True):
            assert (mask(out/m) == page).all()
    before = snapshot(out)
    for gone in sorted(names)[::3]:
        (out/gone).unlink()
    predict_folder(model, folder, out, .5, every)
    assert record(out) == lines and {*snapshot(out)} == {*before}


def test_an_interrupted_run_gives_the_same_names(model, tmp_path, monkeypatch):
    folder = write(tmp_path/'in', **NAMES['pages'] | NAMES['stems'] | NAMES['case'])
    predict_folder(model, folder, tmp_path/'whole')
    monkeypatch.setattr(prediction, 'SMALL', 1) # each file is finished before the next one
    add, left = prediction.Manifest.add, [0]
    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        add(*args)
    for _ in range(9):
        left[0] = 2
        with monkeypatch.context() as m:
            m.setattr(prediction.Manifest, 'add', interrupted)
            try:
                predict_folder(model, folder, tmp_path/'cut')
            except KeyboardInterrupt:
                continue
        break
    cut, whole = ({f: l['stem'] for f, l in record(tmp_path/n).items()} for n in ('cut', 'whole'))
    assert cut == whole and len(cut) == 7


def test_another_folder_of_the_same_names(model, tmp_path):
    "Equal names, sizes and times: each has its own mask."
    for i, name in enumerate(('one', 'two')):
        folder = write(tmp_path/name, a__tif=pattern(i))
        os.utime(folder/'a.tif', (10**9, 10**9))
        done = predict_folder(model, folder, tmp_path/'out')
        assert (done['written'], done['skipped']) == (1, 0)
    assert (mask(tmp_path/'out/a.png') == pattern(0)).all()
    assert (mask(tmp_path/'out/a.tif.png') == pattern(1)).all()
    for name in ('one', 'two'):
        assert predict_folder(model, tmp_path/name, tmp_path/'out')['skipped'] == 1
    (tmp_path/'one').rename(tmp_path/'three')
    assert predict_folder(model, tmp_path/'three', tmp_path/'out')['skipped'] == 1


@pytest.mark.parametrize('harm', (b'', b'cut off', bytes(999), 'zeros', None))
def test_an_output_that_is_not_whole_is_made_again(model, tmp_path, harm):
    folder, out = write(tmp_path/'in', a__png=pattern(0)), tmp_path/'out'
    predict_folder(model, folder, out)
    harm = bytes((out/'a.png').stat().st_size) if harm == 'zeros' else harm
    (out/'a.png').unlink() if harm is None else (out/'a.png').write_bytes(harm)
    assert predict_folder(model, folder, out)['written'] == 1
    assert (mask(out/'a.png') == pattern(0)).all()


def test_edited_outlines_of_the_same_size_stay(model, tmp_path):
    "A digit that was changed is an edit; outlines of which a part was lost are made again."
    folder, out = write(tmp_path/'in', a__png=pattern(0), b__png=pattern(1)), tmp_path/'out'
    again = lambda: predict_folder(model, folder, out, .5, ('masks', 'geojson'))
    again()
    first = (out/'a.geojson').read_bytes()
    assert again()['skipped'] == 2
    edited = first.replace(b'"score": 1.0', b'"score": 0.5', 1)
    assert edited != first and len(edited) == len(first)
    (out/'a.geojson').write_bytes(edited)
    lost = (out/'b.geojson').read_bytes()
    (out/'b.geojson').write_bytes(lost[:200]+bytes(20)+lost[220:])
    done = again()
    assert (done['written'], done['skipped']) == (2, 0)
    assert 'a.geojson was changed since it was written' in done['notes'][0]
    assert (out/'a.geojson').read_bytes() == edited and (out/'a.png.geojson').read_bytes() == first
    assert (out/'b.geojson').read_bytes() == lost and again()['skipped'] == 2
    predict_folder(model, folder, out, .6, ('masks', 'geojson')) # other settings: all is made anew
    assert (out/'a.geojson').read_bytes() == edited


def test_edited_annotations_stay(model, tmp_path, monkeypatch):
    "As they are, of any size; those of now have the next name, run after run, and after one that was cut off."
    folder, out = write(tmp_path/'in', a__png=pattern(0)), tmp_path/'out'
    again = lambda threshold=.5: predict_folder(model, folder, out, threshold, ('masks', 'coco'))
    again()
    first = (out/'annotations.json').read_bytes()
    assert again()['notes'] == [] and (out/'annotations.json').read_bytes() == first
    write(folder, b__png=pattern(1))
    with monkeypatch.context() as m:
        whole = prediction.write_whole
        m.setattr(prediction, 'write_whole', lambda p, data: whole(p, data) if p.name != 'annotations.json' else 1/0)
        with pytest.raises(ZeroDivisionError):
            again()
    assert again()['notes'] == [] and len(json.loads((out/'annotations.json').read_bytes())['images']) == 2
    edited = (out/'annotations.json').read_bytes().replace(b'"object"', b'"Object"')
    (out/'annotations.json').write_bytes(edited)
    for threshold in (.5, .6):
        assert 'annotations.json was changed since it was written' in again(threshold)['notes'][-1]
        assert (out/'annotations.json').read_bytes() == edited
        assert len(json.loads((out/'annotations_1.json').read_bytes())['images']) == 2
    assert not (out/'annotations_2.json').exists()
    (out/'annotations.json').write_bytes(edited[:100]) # what is damaged is nobody's work
    assert again()['notes'] == [] and len(json.loads((out/'annotations.json').read_bytes())['images']) == 2


def test_a_picture_that_is_replaced_while_it_waits(model, tmp_path, monkeypatch):
    folder, out = write(tmp_path/'in', a__tif=pattern(0), b__tif=pattern(1)), tmp_path/'out'
    times = (folder/'a.tif').stat()
    def replace(done, of):
        if done == 2:
            write(folder, a__tif=pattern(2))
            os.utime(folder/'a.tif', ns=(times.st_atime_ns, times.st_mtime_ns))
    assert predict_folder(model, folder, out, say=replace)['written'] == 2
    done = predict_folder(model, folder, out)
    assert (done['written'], done['skipped']) == (1, 1)
    assert (mask(out/'a.png') == pattern(2)).all()


@posix
def test_the_rest_is_made(said, tmp_path, monkeypatch):
    "Files that are gone, cannot be predicted or cannot be written are listed; the others are made."
    folder, out = write(tmp_path/'in', **{f'{i}__png': pattern(i) for i in range(8)}), tmp_path/'out'
    georeference, save, batch = prediction.georeference, prediction.save_array, prediction.predict_batch
    def placed(path, outlines, key):
        if path.name == '1.png':
            path.unlink()
        return georeference(path, outlines, key)
    def saved(path, a, geo=()):
        if path.name == '2.png':
            raise ValueError('no such\nkind')
        save(path, a, geo)
    def predicted(m, x):
        if any((i*255 == pattern(3)).all() for i in x[:, 0]):
            raise MemoryError('too large')
        return batch(m, x)
    (out/'4.png').mkdir(parents=True)
    monkeypatch.setattr(prediction, 'georeference', placed)
    monkeypatch.setattr(prediction, 'save_array', saved)
    monkeypatch.setattr(prediction, 'predict_batch', predicted)
    monkeypatch.setattr(prediction, 'known_by', lambda p: Path(p).name)
    (folder/'5.png').unlink()
    (folder/'5.png').symlink_to('nowhere.png')
    status, said_out, err = said(folder, '--out', out)
    assert status == 2 and said_out.startswith('4 pictures') and 'Traceback' not in err
    lines = err.splitlines()
    assert lines[0] == 'left out:' and len(lines) == 5
    for name, why in (('1.png', 'FileNotFoundError'), ('2.png', 'ValueError: no such kind'),
                      ('3.png', 'MemoryError: too large'), ('5.png', 'cannot be read')):
        assert any(name in l and why in l for l in lines), (name, err)
    assert {p.name for p in out.glob('*.png') if p.is_file()} == {'0.png', '4.png.png', '6.png', '7.png'}


WRITERS = {'save': Image.Image, 'imwrite': tifffile, 'replace': Path} # functions that fail, and where they are


@pytest.mark.parametrize('number', (errno.ENOSPC, errno.EROFS, errno.EACCES))
@pytest.mark.parametrize('writer', WRITERS)
def test_a_full_disk_ends_the_run(said, tmp_path, monkeypatch, number, writer):
    "One sentence, nothing half-written; and the same command goes on."
    folder, out = write(tmp_path/'in', **{f'{i}__tif': pattern(i) for i in range(7)}), tmp_path/'out'
    words, left = (folder, '--out', out, '--write', 'masks', 'probabilities'), [4]
    real = getattr(WRITERS[writer], writer)
    def full(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(WRITERS[writer], writer, full)
        status, _, err = said(*words)
    assert (status, err.count('\n')) == (2, 1) and os.strerror(number) in err
    done = len(record(out))
    assert 0 < done < 7
    assert {p.name for p in out.glob('.*')} == {'.lock'} and all(p.stat().st_size for p in out.glob('[!.]*'))
    status, told, err = said(*words)
    assert status == 0 and told.startswith(f'{7-done} pictures') and f'{done} files were finished before' in told


def test_a_mistake_that_hits_every_file_ends_the_run(said, tmp_path, monkeypatch):
    folder = write(tmp_path/'in', **{f'{i}__png': pattern(i) for i in range(7)})
    def mistaken(m, x):
        raise KeyError('weight')
    monkeypatch.setattr(prediction, 'predict_batch', mistaken)
    status, _, err = said(folder, '--out', tmp_path/'out')
    assert (status, err.count('\n')) == (2, 1) and "for one reason (KeyError: 'weight')" in err


def test_one_prediction_in_a_folder_at_a_time(model, said, tmp_path):
    folder, out = write(tmp_path/'in', a__png=pattern(0)), tmp_path/'out'
    out.mkdir()
    with only_one(out):
        status, _, err = said(folder, '--out', out)
    assert (status, err.count('\n')) == (2, 1) and 'in use by another process' in err
    assert said(folder, '--out', out)[0] == 0
    results, start = [], threading.Barrier(2)
    def predicts():
        start.wait()
        try:
            results.append(predict_folder(model, folder, tmp_path/'both')['written'])
        except InputError as e:
            results.append('in use' in str(e))
    threads = [threading.Thread(target=predicts) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(results) == 2 and 1 in results


def test_leftovers_of_dead_runs_are_swept(model, tmp_path):
    folder, out = write(tmp_path/'in', a__png=pattern(0)), tmp_path/'out'
    out.mkdir()
    swept = [f'.a.png.{2**31}', f'..b.tif.{2**31}', f'.manifest.jsonl.{2**31}']
    stay = [f'.a.png.{os.getppid()}', '.notes.part', f'.notes.{2**31}', '.a.png']
    for name in swept+stay:
        (out/name).write_bytes(b'half')
    predict_folder(model, folder, out)
    assert {p.name for p in out.iterdir()} == {*stay, '.lock', 'a.png', 'manifest.jsonl'}


RECORDS = dict(binary=b'\0\xff\xfe\n'*9, deep=b'['*10**5, array=b'[1,2]\n', number=b'7', empty=b'',
               kinds=b'{"settings": [1]}\n',
               old=b'{"settings": {"model": "x"}}\n\n{"file": "a.png", "bytes": 1, "changed": 2, "outputs": []}')


@pytest.mark.parametrize('name', RECORDS)
def test_a_record_of_odd_shape(said, tmp_path, name):
    folder, out = write(tmp_path/'in', a__png=pattern(0)), tmp_path/'out'
    out.mkdir()
    (out/'manifest.jsonl').write_bytes(RECORDS[name])
    status, _, err = said(folder, '--out', out)
    if name in ('empty', 'old'):
        assert status == 0 and (out/'a.png').is_file()
    else:
        assert (status, err.count('\n')) == (2, 1) and 'no record of a prediction' in err
        assert (out/'manifest.jsonl').read_bytes() == RECORDS[name]


def test_odd_names_are_made_and_shown(said, tmp_path):
    "Bytes that are no letters, escape codes and ends of lines: as %XX in files and on the terminal."
    names = b'caf\xe9.png', b'new\nline.png', b'\x1b[31mred.png', 'naïve ☃.png'.encode(), b'x'*251+b'.png'
    folder, out = write(tmp_path/'in'), tmp_path/'out'
    for i, n in enumerate(names):
        Image.fromarray(pattern(i)).save(folder/os.fsdecode(n))
    (folder/os.fsdecode(b'br\xf6ken\x1b[2J\n.png')).write_bytes(b'no picture')
    for _ in range(2):
        status, told, err = said(folder, '--out', out, '--write', *WRITTEN)
        assert status == 2 and told.startswith('5 pictures')
        assert len(err.splitlines()) == 2 and 'br%F6ken%1B[2J%0A.png cannot be read' in err and '\x1b' not in told+err
    made = {p.name for p in out.glob('*.png') if not p.name.endswith('.overlay.png')}
    assert made == {'caf%E9.png', 'new%0Aline.png', '%1B[31mred.png', 'naïve ☃.png', 'x'*200+'.png'}
    assert (mask(out/'caf%E9.png') == pattern(0)).all()
    images = json.loads((out/'annotations.json').read_bytes().decode())['images']
    assert {i['file_name'] for i in images} == {*record(out)} and 'caf%E9.png' in record(out)
    assert json.dumps(images, ensure_ascii=False).encode()


@posix
def test_other_commands_write_over_no_input(model, tmp_path, capsys):
    "A page of a check, the files of an evaluation."
    for pile in ('objects', 'backgrounds', 'masks'):
        write(tmp_path/pile, worst__png=pattern(0), link__png=pattern(1))
    (tmp_path/'scored').mkdir()
    os.link(tmp_path/'masks/link.png', tmp_path/'scored/worst.png')
    (tmp_path/'table.csv').write_text('path,label\nobjects/worst.png,object\nbackgrounds/worst.png,background\n')
    (tmp_path/'notes.html').write_text('mine')
    top, before = tmp_path, {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    pages = 'table.csv', 'notes.html', 'objects/worst.png'
    wanted = [*((bcd_check, top/'table.csv', '--out', top/page) for page in pages),
              *((bcd_check, top, '--out', top/page) for page in ('backgrounds/link.png', 'scored')),
              *((bcd_eval, model, top, '--out', top/out) for out in ('objects', 'masks', 'backgrounds', 'scored'))]
    for command, *words in wanted:
        assert command([*map(str, words)]) == 2, words
        said = capsys.readouterr()
        assert said.err.count('\n') == 1
        assert any(w in said.err for w in ('which is read', 'no page', 'is a folder')), said.err
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before


def test_a_gallery_writes_over_no_study(tmp_path, capsys, monkeypatch):
    (tmp_path/'figures.json').write_text('{"cases": []}')
    monkeypatch.setattr('bcd_fast.commands.gallery.draw_all', lambda *folders: [])
    assert bcd_figures(['--studies', str(tmp_path), '--out', str(tmp_path)]) == 2
    assert 'which is read' in capsys.readouterr().err
    (tmp_path/'figures.json').write_text('[]') # of a gallery
    assert bcd_figures(['--studies', str(tmp_path), '--out', str(tmp_path)]) == 0
