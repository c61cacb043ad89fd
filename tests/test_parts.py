"An archive predicted in parts: the same files, byte by byte, as from a single run; folders keep their tree."
import json, os, sys
import numpy as np, pytest, tifffile
from PIL import Image
from skimage.measure import label
from bcd_fast.core import InputError, only_one
from bcd_fast.commands.eval import bcd_eval
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.commands.submit import bcd_submit
from bcd_fast.prediction import parts
from bcd_fast.prediction.parts import merge_parts
from bcd_fast.train import main
from bcd_fast.prediction.predict import find_images, predict_folder, predict_part
from bcd_fast.prediction.tiles import predict_batch

WHAT = 'masks', 'coco', 'geojson'


@pytest.fixture(autouse=True)
def outside_of_slurm(finds_bright, monkeypatch):
    for name in parts.SLURM.values():
        monkeypatch.delenv(name, raising=False)


def pattern(seed, pages=None):
    "A picture of black and white pixels, which is its own mask; or several."
    shape = (32, 40) if pages is None else (pages, 32, 40)
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.uint8)*255


NAMES = ['7.png', 'north/7.png', 'north/8.png', 'south/7.png', 'south/deep/7.tif', 'south/deep/9.png', 'north/7.tif',
         'scan_0.png', 'x.png', 'x.overlay.png', 'Scan/a.png', 'scan/A.png', 'logs/7.png', 'a.png/b.png', 'a.tif',
         'annotations.json/c.png', 'label studio/ä.png', *(f'line/{i:04}.png' for i in range(6))]


def write(folder, names=NAMES):
    for i, name in enumerate(names):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('.tif'):
            tifffile.imwrite(folder/name, pattern(i), photometric='minisblack')
        else:
            Image.fromarray(pattern(i)).save(folder/name)
    return folder


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    "Pictures with names that get in each other's way, a stack, and a file that is no picture."
    top = write(tmp_path_factory.mktemp('archive')/'in')
    tifffile.imwrite(top/'scan.tif', pattern(99, 3), photometric='minisblack')
    (top/'south/broken.png').write_bytes(b'no picture')
    return top


def files(folder):
    "What is in a folder, but for what belongs to single parts."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*'))
            if p.is_file() and not p.name.startswith('.') and '-of-' not in p.name}


def record(path):
    return [json.loads(l) for l in path.read_text().splitlines() if l][1:]


def part(model, images, out, i, n, write=WHAT, say=lambda done, of: None):
    return predict_part((i, n), model, images, out, .5, write, dict(nodata=None, key=None), say)


@pytest.fixture(scope='module')
def single(model, finds_bright, archive, tmp_path_factory):
    out = tmp_path_factory.mktemp('single')/'out'
    predict_folder(model, archive, out, .5, WHAT)
    return files(out)


def test_the_tree_is_kept(single):
    assert {'7.png', 'north/8.png', 'south/7.png', 'south/deep/7.png', 'south/deep/9.png'} <= {*single}
    assert {'north/7.png.png', 'north/7.tif.png'} <= {*single} and 'logs-2/7.png' in single
    assert 'annotations.json-2/c.png' in single and 'label studio/ä.png' in single
    lines = [json.loads(l) for l in single['manifest.jsonl'].splitlines()][1:]
    outputs = [o for l in lines for o in l['outputs']]
    assert len(outputs) == len({o.casefold() for o in outputs}) and {*outputs} == {*single}-{'manifest.jsonl',
                                                                                             'annotations.json'}
    coco = json.loads(single['annotations.json'])
    assert [i['id'] for i in coco['images']] == [*range(1, len(coco['images'])+1)]
    named = [i['file_name'] for i in coco['images']]
    assert len({*named}) == len(named) and {'north/7.png', 'south/7.png', '7.png', 'logs/7.png'} <= {*named}


@pytest.mark.parametrize('n', [2, 5])
def test_parts_make_what_a_single_run_makes(model, archive, tmp_path, single, n):
    out, shares = tmp_path/'out', []
    for i in reversed(range(1, n+1)):
        part(model, archive, out, i, n)
        shares.append({l['path'] for l in record(out/f'manifest.{i}-of-{n}.jsonl')})
    assert all(shares) and sum(map(len, shares)) == len(set.union(*shares)) == len(NAMES)+1
    done = merge_parts(out)
    assert (done['missing'], done['gone'], len(done['failed'])) == ({}, [], 1) and 'broken.png' in done['failed'][0]
    assert files(out) == single
    assert merge_parts(out)['notes'] == [] and files(out) == single
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*.png')}
    assert part(model, archive, out, 1, n)['written'] == 0 # nothing is made twice
    assert {p: p.stat().st_mtime_ns for p in out.rglob('*.png')} == before


def test_joining_leaves_edited_annotations(model, archive, tmp_path, capsys):
    out = tmp_path/'out'
    for i in (1, 2):
        part(model, archive, out, i, 2)
    merge_parts(out)
    edited = (out/'annotations.json').read_bytes().replace(b'"object"', b'"Object"')
    (out/'annotations.json').write_bytes(edited)
    assert bcd_predict(['--merge', str(out)]) == 2 # one file is no picture
    assert 'annotations.json was changed since it was written: it stays' in capsys.readouterr().err
    assert (out/'annotations.json').read_bytes() == edited and (out/'annotations_1.json').is_file()


@pytest.mark.parametrize('most', [2**24, 2**10], ids=['small', 'large'])
def test_parts_leave_out_the_same_regions(model, archive, tmp_path, monkeypatch, capsys, most):
    "Of pictures in memory, and of such as are read in bands; the smallest area is one of the settings."
    monkeypatch.setattr('bcd_fast.prediction.predict.SMALL', most)
    words = [str(model), str(archive), '--threshold', '.5', '--write', 'masks', 'coco', 'geojson', 'overlay']
    least = ['--min-area', '6', '--out']
    for more in (['all/', '--part', 'all'], ['out/', '--part', '1/2'], ['out/', '--part', '2/2']):
        assert bcd_predict([*words, *least, f'{tmp_path}/{more[0]}', *more[1:]]) in (0, 2) # one file is no picture
    assert bcd_predict(['--merge', str(tmp_path/'out')]) == 2
    assert 'missing' not in capsys.readouterr().err
    single = files(tmp_path/'all')
    assert files(tmp_path/'out') == single
    head = json.loads(single['manifest.jsonl'].splitlines()[0])
    coco, outlines = json.loads(single['annotations.json']), json.loads(single['north/8.geojson'])['features']
    assert head['settings']['min_area'] == '6' and min(a['area'] for a in coco['annotations']) >= 6
    assert [a['id'] for a in coco['annotations']] == [*range(1, len(coco['annotations'])+1)]
    image, = (i['id'] for i in coco['images'] if i['file_name'] == 'north/8.png')
    areas = [a['area'] for a in coco['annotations'] if a['image_id'] == image]
    every = np.bincount(label(pattern(NAMES.index('north/8.png')), connectivity=2).ravel())[1:]
    assert [f['properties']['area_pixels'] for f in outlines] == areas and min(every) < 6
    assert sorted(areas) == sorted(n for n in every if n >= 6)
    made = {o for l in record(tmp_path/'all/manifest.jsonl') for o in l['outputs']}
    assert made | {'manifest.jsonl', 'annotations.json'} == {*single} and 'north/8.overlay.png' in made
    bcd_predict([*words, '--out', str(tmp_path/'out'), '--part', '1/2'])
    with pytest.raises(InputError, match='different models or words'):
        merge_parts(tmp_path/'out')


def test_shares_stay_with_other_roots_and_other_files(model, archive, tmp_path):
    "The share of a picture is told by its path below the folder."
    found = find_images(archive, tmp_path/'out', (2, 5)).mine()
    moved = tmp_path/'moved'
    os.rename(archive, moved)
    try:
        again = find_images(moved, tmp_path/'out', (2, 5)).mine()
    finally:
        os.rename(moved, archive)
    assert [(p.relative_to(archive), s) for p, s in found] == [(p.relative_to(moved), s) for p, s in again]


class Killed(BaseException):
    "What no part can catch, as a signal that ends it."


def test_a_killed_part_goes_on(model, archive, tmp_path, single, monkeypatch):
    out = tmp_path/'out'
    monkeypatch.setattr('bcd_fast.prediction.predict.SMALL', 2**12) # pictures do not wait for each other
    def kill(done, of):
        if done == of//2:
            raise Killed
    part(model, archive, out, 1, 2)
    with pytest.raises(Killed):
        part(model, archive, out, 2, 2, say=kill)
    made = len(record(out/'manifest.2-of-2.jsonl'))
    aside = out/f'.writing-{"0"*32}' # of a part that was killed, or of one that goes on
    aside.mkdir()
    assert made and part(model, archive, out, 1, 2)['written'] == 0 and aside.is_dir()
    done = merge_parts(out)
    assert not aside.exists()
    assert [*done['missing']] == [2] and '--part 2/2' in done['missing'][2]
    with open(out/'manifest.2-of-2.jsonl', 'a') as f:
        f.write('{"path": "cut o')
    again = part(model, archive, out, 2, 2)
    assert again['skipped'] == made
    merge_parts(out)
    monkeypatch.undo()
    assert files(out).keys() == single.keys()
    assert {n for n in single if files(out)[n] != single[n]} == set()


def test_parts_are_held_apart(model, archive, tmp_path):
    out = tmp_path/'out'
    part(model, archive, out, 1, 2, ('masks',))
    with only_one(out, '.lock.1-of-2'):
        part(model, archive, out, 2, 2, ('masks',)) # another one runs beside it
        for refused in (lambda: part(model, archive, out, 1, 2, ('masks',)), lambda: merge_parts(out)):
            with pytest.raises(InputError, match='in use by another process'):
                refused()


def test_other_numbers_are_refused(model, archive, tmp_path):
    out = tmp_path/'out'
    part(model, archive, out, 1, 2, ('masks',))
    with pytest.raises(InputError, match='holds parts of 2: give --part I/2'):
        part(model, archive, out, 1, 3, ('masks',))
    with pytest.raises(InputError, match='--merge'):
        predict_folder(model, archive, out, .5)
    part(model, archive, out, 2, 2, ('masks', 'overlay'))
    with pytest.raises(InputError, match='different models or words'):
        merge_parts(out)


def test_what_is_missing_is_said(model, archive, tmp_path, capsys):
    out = tmp_path/'out'
    words = [str(model), str(archive), '--out', str(out), '--threshold', '.5', '--part']
    assert bcd_predict([*words, '3/3']) in (0, 2)
    lost = record(out/'manifest.3-of-3.jsonl')[0]['outputs']
    (out/next(iter(lost))).unlink()
    capsys.readouterr()
    assert bcd_predict(['--merge', str(out)]) == 2
    said = capsys.readouterr().err
    assert 'part 1 of 3 has not ended' in said and '--part 2/3' in said and next(iter(lost)) in said
    for i in (1, 2, 3):
        bcd_predict([*words, f'{i}/3'])
    capsys.readouterr()
    assert bcd_predict(['--merge', str(out)]) == 2
    said = capsys.readouterr().err
    assert 'missing' not in said and 'broken.png' in said
    write(archive, ['new/1.png']) # parts that saw other pictures do not fit
    try:
        bcd_predict([*words, '1/3'])
        assert [*merge_parts(out)['missing']] == [1]
    finally:
        (archive/'new/1.png').unlink()
        (archive/'new').rmdir()


def test_a_part_is_that_of_the_task(model, archive, tmp_path, capsys, monkeypatch):
    for name, value in dict(id='6', count='3', min='4', max='6', step='1').items():
        monkeypatch.setenv(parts.SLURM[name], value)
    words = [str(model), str(archive), '--out', str(tmp_path/'out'), '--threshold', '.5']
    bcd_predict(words)
    assert 'part 3 of 3' in capsys.readouterr().out and (tmp_path/'out/manifest.3-of-3.jsonl').is_file()
    bcd_predict([*words[:3], str(tmp_path/'all'), '--part', 'all'])
    assert (tmp_path/'all/manifest.jsonl').is_file()
    assert bcd_predict([*words, '--write', 'labelme']) == 2
    assert 'is made of all images' in capsys.readouterr().err


def test_results_before_parts_keep_their_names(model, tmp_path):
    "Another folder was predicted there: parts write over nothing of it, and joining forgets nothing."
    one, two, out = write(tmp_path/'one', ['7.png', '8.png']), write(tmp_path/'two', NAMES[:4]), tmp_path/'out'
    for folder in (one, two):
        predict_folder(model, folder, tmp_path/'single', .5, ('masks',))
    predict_folder(model, one, out, .5, ('masks',))
    for i in (1, 2):
        part(model, two, out, i, 2, ('masks',))
    merge_parts(out)
    assert files(out) == files(tmp_path/'single') and len(record(out/'manifest.jsonl')) == 6


def test_own_results_in_the_tree_are_not_read(model, tmp_path):
    top = write(tmp_path/'in', NAMES[:4])
    for _ in range(2):
        done = predict_folder(model, top, top/'out', .5, ('masks', 'overlay'))
        assert done['written']+done['skipped'] == 4 and done['notes'] == []
    note, = predict_folder(model, top, tmp_path/'other', .5)['notes']
    assert 'out/7.overlay.png and 7 more left out: made by bcd_fast' in note
    assert len(record(tmp_path/'other/manifest.jsonl')) == 4
    write(top, ['out/mine.png'])
    with pytest.raises(InputError, match='mine.png, which is read'):
        predict_folder(model, top, top/'out', .5)
    for place in (top, top/'north'):
        with pytest.raises(InputError, match='which is read'):
            predict_folder(model, top, place, .5)


def test_a_folder_of_results_above_the_pictures(model, tmp_path):
    "Its own files would lie beside no picture, but those of folders in it would come over pictures."
    top = write(tmp_path/'top', ['b/7.png'])
    before = files(top)
    with pytest.raises(InputError, match='7.png, which is read'):
        predict_folder(model, top, top, .5)
    assert files(top) == before


def test_evaluation_reads_folders_in_folders(model, tmp_path, capsys):
    data = tmp_path/'data'
    for pile in ('objects', 'masks'):
        write(data/pile, ['7.png', 'north/7.png', 'south/7.png'])
    write(data/'masks', ['east/7.png'])
    predict_folder(model, data/'objects', data/'objects/out', .5)
    assert bcd_eval([str(model), str(data), '--out', str(tmp_path/'eval'), '--worst', '0']) == 2
    said = capsys.readouterr()
    assert '3 pictures of objects' in said.out and 'east/7.png is the mask of no picture' in said.err
    table = (tmp_path/'eval/per_picture.csv').read_text()
    assert all(f'{n},' in table for n in ('north/7.png', 'south/7.png'))
    assert json.loads((tmp_path/'eval/eval.json').read_text())['iou'] == 1


def test_submission_says_what_is_wrong(model, archive, tmp_path, capsys, monkeypatch):
    "Before a task is sent."
    monkeypatch.setitem(sys.modules, 'submitit', None)
    words = ['predict', str(model), str(archive), '--out', str(tmp_path/'out'), '--parts']
    assert bcd_submit([*words, '2']) == 2
    assert "pip install 'bcd_fast[slurm]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'hydra_plugins.hydra_submitit_launcher', None)
    assert main(['--multirun', 'seed=0,1', 'hydra/launcher=submitit_slurm']) == 2
    assert "pip install 'bcd_fast[slurm]'" in capsys.readouterr().err
    assert bcd_submit([*words, '2', '--smooth', '1']) == 2
    assert '--smooth is for --write geojson and gpkg' in capsys.readouterr().err
    part(model, archive, tmp_path/'out', 1, 3, ('masks',))
    assert bcd_submit([*words, '2']) == 2
    assert 'holds parts of 3: give --parts 3' in capsys.readouterr().err


@pytest.mark.slow
def test_submission_without_slurm(model, tmp_path, capsys, monkeypatch):
    "Tasks are processes of this machine, with the model as it is."
    pytest.importorskip('submitit')
    small = write(tmp_path/'in', NAMES[:6])
    words = [str(model), str(small), '--threshold', '.5', '--min-area', '6', '--write', *WHAT]
    for module in ('tiles', 'predict'): # tasks are other processes, whose models find what they find
        monkeypatch.setattr(f'bcd_fast.prediction.{module}.predict_batch', predict_batch)
    assert bcd_predict([*words, '--out', str(tmp_path/'single')]) == 0
    out, logs = tmp_path/'out', ['--logs', str(tmp_path/'logs')]
    assert bcd_submit(['predict', *words, '--out', str(out), '--parts', '2', '--local', *logs]) == 0
    assert '6 images of 2 parts' in capsys.readouterr().out and any((tmp_path/'logs').iterdir())
    assert files(out) == files(tmp_path/'single')


def test_tools_are_given_the_tree(model, tmp_path, capsys):
    "Equal stems in two folders are two pictures for labelling tools, too."
    names = ['7.png', 'north/7.png', 'south/deep/7.png']
    top, out = write(tmp_path/'in', names), tmp_path/'out'
    words = [str(model), str(top), '--out', str(out), '--threshold', '.5', '--write', 'labelstudio', 'labelme']
    assert bcd_predict([*words, '--root', str(tmp_path)]) == 0, capsys.readouterr().err
    tasks = json.loads((out/'labelstudio/tasks.json').read_text())
    assert sorted(t['data']['image'].split('?d=in/')[1] for t in tasks) == names
    assert {f'{n}.json' for n in names} <= {*files(out/'labelme')}
    assert len(record(out/'manifest.jsonl')) == 3
