"Predictions for labelling tools: names that lead back, nothing of a person's written over, interrupted runs go on."
import json, os
from urllib.parse import parse_qs, urlsplit
import numpy as np, pytest, tifffile
from PIL import Image
from bcd_fast.commands.importing import bcd_import
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.data.corrected import corrected_of, read_corrected
from bcd_fast.exchange import entries
from bcd_fast.exchange.exports import WRITERS
from bcd_fast.exchange.label_studio import brush_mask
from conftest import posix

pytestmark = pytest.mark.usefixtures('finds_bright')

SHAPE = 32, 40
NAMES = 'objects/north/7.png', 'objects/north/9.tif', 'objects/south/7.png', 'backgrounds/x.npy'
FOLDERS = 'objects/north', 'objects/south', 'backgrounds'


def mask_of(i):
    "Which pixels are bright in a picture."
    mask = np.zeros(SHAPE, bool)
    mask[2+i:9+i, 4:20] = mask[20:, 30:] = True
    return mask


@pytest.fixture
def data(tmp_path):
    "Pictures in sub-folders of both piles: 8 bits, 16 bits, floats."
    for i, name in enumerate(NAMES):
        path = tmp_path/'site/data'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.npy':
            np.save(path, mask_of(i).astype(np.float32)*255)
        elif path.suffix == '.tif':
            tifffile.imwrite(path, mask_of(i).astype(np.uint16)*40000, photometric='minisblack')
        else:
            Image.fromarray(mask_of(i).astype(np.uint8)*255).save(path)
    return tmp_path/'site/data'


@pytest.fixture
def predict(model, data, capsys):
    "The command: exit status, output, errors."
    def predicts(folder, *words, out=data.parent/'masks'):
        capsys.readouterr()
        status = bcd_predict([str(model), str(data/folder), '--out', str(out), *map(str, words)])
        return (status, *capsys.readouterr())
    return predicts


def everything(predict, *words):
    "All folders, one after the other."
    return [predict(folder, '--write', *(words or WRITERS)) for folder in FOLDERS]


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def tasks_of(data):
    return json.loads((data.parent/'masks/labelstudio/tasks.json').read_text())


def saved(tool, data):
    "What each tool's user saves: all masks as they are."
    folder = data.parent/'masks'/tool
    if tool == 'labelstudio':
        export = data.parent/'export.json'
        tasks = [t | dict(annotations=[dict(result=t['predictions'][0]['result'])]) for t in tasks_of(data)]
        export.write_text(json.dumps(tasks))
        return export
    for path in folder.rglob('*.json' if tool == 'labelme' else '*.labels.tif'):
        if tool == 'labelme':
            path.write_text(json.dumps(json.loads(path.read_text()) | dict(version='6.3.1')))
        else:
            tifffile.imwrite(path, tifffile.imread(path))
    return folder


@pytest.mark.parametrize('tool', WRITERS)
def test_there_and_back(tool, predict, data, capsys):
    "Folder after folder into one place; the last command's list has all of them, and leads back to all of them."
    before = snapshot(data)
    for status, out, err in everything(predict, tool):
        assert (status, err) == (0, '') and out.splitlines()[-1].endswith(f' {data}')
    assert snapshot(data) == before
    assert bcd_import([str(saved(tool, data)), str(data)]) == 0
    assert '4 mask(s)' in capsys.readouterr().out and list(corrected_of(data)) == sorted(NAMES)
    for i, name in enumerate(NAMES):
        path = (data/'corrected'/name).with_suffix('.png')
        assert (read_corrected(path, SHAPE) == np.where(mask_of(i), 255, 0)).all()


def test_tasks(predict, data):
    "Addresses below the root that the command names, previews of what browsers do not show, a score and a version."
    *_, (_, out, _) = everything(predict, 'labelstudio')
    root = data.parent.parent
    assert f'DOCUMENT_ROOT={root};' in out and f'add {data.parent} as local storage' in out
    for task in tasks_of(data):
        i = NAMES.index(task['data']['picture'])
        address = urlsplit(task['data']['image'])
        assert address.path == '/data/local-files/'
        shown = root/parse_qs(address.query)['d'][0]
        assert (shown == data/NAMES[i]) == NAMES[i].endswith('.png')
        with Image.open(shown) as im:
            assert im.mode == 'L' and ((np.asarray(im) > 127) == mask_of(i)).all()
        prediction, = task['predictions']
        assert prediction['model_version'].startswith('bcd_fast ') and .9 < prediction['score'] <= 1
        regions = [brush_mask(r['value']['rle'], SHAPE) for r in prediction['result']]
        assert len(regions) == 2 and (np.logical_or(*regions) == mask_of(i)).all()
        values = [r['value'] for r in prediction['result']]
        assert {(v['format'], *v['brushlabels']) for v in values} == {('rle', 'object')}


def test_root(predict, data, tmp_path):
    assert predict('objects/south', '--write', 'labelstudio', '--root', tmp_path)[0] == 0
    assert tasks_of(data)[0]['data']['image'] == '/data/local-files/?d=site/data/objects/south/7.png'
    status, out, err = predict('objects/south', '--write', 'labelstudio', '--root', tmp_path/'elsewhere')
    assert (status, out, err.count('\n')) == (2, '', 1) and 'lies outside of' in err
    status, out, err = predict('objects/south', '--root', tmp_path)
    assert (status, out, err.count('\n')) == (2, '', 1) and '--root is for' in err


def harm(data):
    "A file of each kind that a person may change, as somebody has left it."
    top = data.parent/'masks'
    mine = 'labelme/objects/north/7.png.json', 'napari/objects/north/9.labels.tif', 'labelstudio/label_config.xml'
    mine = [top/name for name in mine]
    for p in mine:
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(b'corrected '+(p.read_bytes() if p.exists() else b''))
    return {p: p.read_bytes() for p in mine}


@pytest.mark.parametrize('when', ('later', 'before', 'no record'))
def test_what_a_person_has_changed_stays(when, predict, data):
    "With another threshold, too, and whether or not our files were there before."
    if when != 'before':
        everything(predict)
    mine = harm(data)
    told = [str(p) for p in mine if p.suffix != '.xml']
    if when == 'no record':
        for tool in WRITERS:
            (data.parent/'masks'/tool/entries.WRITTEN).unlink()
        (data.parent/'masks/manifest.jsonl').unlink()
    for threshold in (.5, .5, .6):
        status, _, err = predict('objects/north', '--write', 'labelme', 'napari', '--threshold', threshold)
        assert {p: p.read_bytes() for p in mine} == mine
        assert all(p in err for p in told)
        assert 'Traceback' not in err and status == 0


def test_what_nobody_has_changed_is_made_anew(predict, data):
    everything(predict, 'labelme')
    Image.fromarray(mask_of(9).astype(np.uint8)*255).save(data/NAMES[0])
    status, _, err = predict('objects/north', '--write', 'labelme')
    assert (status, err) == (0, '')
    content = json.loads((data.parent/'masks/labelme/objects/north/7.png.json').read_text())
    assert sorted(s['points'][0] for s in content['shapes']) == [[4, 11], [30, 20]]
    with Image.open(data.parent/'masks/labelme/objects/north/7.png.png') as im:
        assert ((np.asarray(im) > 127) == mask_of(9)).all()


@posix
@pytest.mark.parametrize('name', ('labelstudio/tasks.json', 'labelstudio/previews/objects/north/9.tif.png',
                                  'labelme/objects/north/9.tif.png'))
@pytest.mark.parametrize('link', (True, False))
def test_what_is_of_something_else(name, link, predict, data):
    "A picture that would be shown in its place, other tasks, a link to a picture: nothing is written there."
    path = data.parent/'masks'/name
    path.parent.mkdir(parents=True)
    path.symlink_to(data/NAMES[2]) if link else path.write_bytes(b'mine')
    before, content = snapshot(data), path.read_bytes()
    status, _, err = predict('objects/north', '--write', name.split('/')[0])
    assert status == 2 and str(path) in err and 'is not as it was written here' in err and 'Traceback' not in err
    assert snapshot(data) == before and path.read_bytes() == content and path.is_symlink() == link


def test_no_picture_beside_them(predict, data, tmp_path):
    "A folder for a tool that holds the pictures, or that is no folder."
    (tmp_path/'out').mkdir()
    (data/'objects/south').rename(tmp_path/'out/labelme')
    before = snapshot(tmp_path)
    status, out, err = predict(tmp_path/'out/labelme', '--write', 'labelme', out=tmp_path/'out')
    assert (status, out, err.count('\n')) == (2, '', 1) and 'which is read' in err and snapshot(tmp_path) == before
    (tmp_path/'out/napari').write_text('mine')
    status, out, err = predict('objects/north', '--write', 'napari', out=tmp_path/'out')
    assert (status, err.count('\n')) == (2, 1) and (tmp_path/'out/napari').read_text() == 'mine'


@pytest.mark.parametrize('tool', WRITERS)
def test_an_interrupted_run_goes_on(tool, predict, data, monkeypatch):
    "Killed after any file: the same command ends with the same files, and takes nothing for somebody else's."
    everything(predict, tool)
    top = data.parent/'masks'/tool
    whole = {p: c for p, c in snapshot(top).items() if p.name != entries.WRITTEN}
    write, left = entries.write_whole, [0]
    def interrupted(path, content):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(path, content)
    for n in range(5):
        for p in whole:
            p.unlink(missing_ok=True)
        left[0] = n
        with monkeypatch.context() as m:
            m.setattr(entries, 'write_whole', interrupted)
            predict('objects/north', '--write', tool)
        assert not [p for p in top.rglob('*') if p.is_file() and not p.stat().st_size]
        status, _, err = predict('objects/north', '--write', tool)
        assert (status, err) == (0, '')
        assert {p: c for p, c in snapshot(top).items() if p.name != entries.WRITTEN} == whole


def test_what_cannot_be_given(predict, data):
    "A file of several pictures; the others are given."
    tifffile.imwrite(data/'objects/north/stack.tif', np.zeros((2, *SHAPE), np.uint8), photometric='minisblack')
    status, out, err = predict('objects/north', '--write', *WRITERS)
    assert status == 2 and err.count('stack.tif holds 2 pictures') == 1 and out.count('bcd_import') == 3
    assert [t['data']['picture'] for t in tasks_of(data)] == list(NAMES[:2])


@posix
def test_capitals_and_links(predict, data, capsys):
    "Piles in capitals, and folders that are links."
    (data/'objects').rename(data.parent/'elsewhere')
    (data/'Objects').symlink_to(data.parent/'elsewhere')
    assert predict('Objects/north', '--write', 'labelstudio')[0] == 0
    assert [t['data']['picture'] for t in tasks_of(data)] == list(NAMES[:2])
    assert bcd_import([str(saved('labelstudio', data)), str(data)]) == 0 and '2 mask(s)' in capsys.readouterr().out


def test_names_that_differ_in_case(model, tmp_path, capsys):
    "No pile: names are those of the folder; the prediction beside it has its own names as before."
    (tmp_path/'in').mkdir()
    for i, name in enumerate(('A.png', 'b.png')):
        Image.fromarray(mask_of(i).astype(np.uint8)*255).save(tmp_path/'in'/name)
    words = [str(model), str(tmp_path/'in'), '--out', str(tmp_path/'out'), '--write', 'labelme', 'masks']
    assert bcd_predict(words) == 0 and 'DIR (a folder with these pictures' in capsys.readouterr().out
    found = sorted(os.listdir(tmp_path/'out/labelme'))
    assert found == ['A.png.json', 'A.png.png', 'b.png.json', 'b.png.png', 'written.jsonl']


def test_outlines_that_somebody_has_edited(predict, data):
    "QGIS saves GeoJSON in its place: that stays, and what is made now has another name; what was cut off is made anew."
    out = data.parent/'masks'
    predict('objects/north', '--write', 'geojson')
    content = json.loads((out/'7.geojson').read_text())
    (out/'7.geojson').write_text(json.dumps(content | dict(features=content['features'][:1], name='mine')))
    (out/'9.geojson').write_bytes((out/'9.geojson').read_bytes()[:-40])
    mine = (out/'7.geojson').read_bytes()
    for threshold in (.5, .5, .6):
        status, _, err = predict('objects/north', '--write', 'geojson', '--threshold', threshold)
        assert status == 0 and (out/'7.geojson').read_bytes() == mine
        assert len(json.loads((out/'7.png.geojson').read_text())['features']) == 2
        assert len(json.loads((out/'9.geojson').read_text())['features']) == 2
