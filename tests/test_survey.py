"What a survey costs: the data are as they are said to be, rows are kept, and a quick measurement gives every number."
import json, shutil, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, tifffile
from scipy import ndimage
from bcd_fast.prediction.outputs import georeference
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'scripts'))
survey = pytest.importorskip('measure_survey', reason='scripts/make_real.py has more requirements')

ROW = dict(seconds=1., cpu_seconds=1., peak_mb=1.)


def test_a_scene_has_an_object_in_each_square(tmp_path):
    survey.make_scene(tmp_path/'a.tif', 600)
    a, there = tifffile.imread(tmp_path/'a.tif'), np.concatenate([survey.strip([7, i], 600)[1] for i in range(3)])
    found, n = ndimage.label(there)
    assert a.shape == there.shape == (600, 600) and n == 9
    squares = {(int(y//200), int(x//200)) for y, x in ndimage.center_of_mass(there, found, range(1, n+1))}
    assert len(squares) == 9 and a[there].mean()-a[~there].mean() > 60
    assert (tifffile.imread(tmp_path/'a.tif') == a).all()
    pytest.importorskip('rasterio')
    place = georeference(tmp_path/'a.tif', outlines=True)
    assert abs(place.to_map([[0, 0]])[0][0]-15) < 1e-6 and abs(place.pixel-.01) < 1e-4 # zone 33 lies around 15 east


def test_hits_are_counted_once():
    there = np.concatenate([survey.strip([7, i], 400)[1] for i in range(2)])
    slices = ndimage.find_objects(ndimage.label(there)[0])
    boxes = [dict(bbox=[x.start, y.start, x.stop-x.start, y.stop-y.start]) for y, x in slices]
    assert survey.hits(boxes, 400) == survey.hits(boxes*2, 400) == 4
    assert survey.hits(boxes[:1], 400) == 1 and survey.hits([dict(bbox=[0, 0, 3, 3])], 400) == 0


def test_bytes_are_told_by_the_end_of_names(tmp_path):
    for name, n in (('0.png', 3), ('1.png', 4), ('a.pings.json', 2), ('manifest.jsonl', 1), ('.lock', 9)):
        (tmp_path/name).write_bytes(bytes(n))
    assert survey.bytes_in(tmp_path) == dict(files={'.pings.json': 1, '.png': 2, 'manifest.jsonl': 1},
                                             bytes={'.pings.json': 2, '.png': 7, 'manifest.jsonl': 1})


def test_rows_stay_and_quick_ones_make_room(tmp_path, monkeypatch):
    made, path = [], tmp_path/'s.json'
    def measure(work, sizes, n):
        made.append(n)
        yield ROW | dict(what='one', n=n)
        yield ROW | dict(what='two', n=n)
    monkeypatch.setattr(survey, 'groups', lambda sizes: {f'scene {n}': (measure, n) for n in sizes.pings})
    for quick in (['--quick'], ['--quick'], [], []):
        survey.main([*quick, '--only', 'scene', '--out', str(path)])
    rows = json.loads(path.read_text())['rows']
    assert made == [*survey.QUICK.pings, *survey.Sizes().pings]
    assert [(r['n'], r['what'], r['quick']) for r in rows] == [
        (n, what, False) for n in survey.Sizes().pings for what in ('one', 'two')]
    with pytest.raises(SystemExit):
        survey.main(['--quick'])


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which('time') and shutil.which('taskset')), reason='GNU time is not installed')
def test_quick(tmp_path):
    "Whole processes; parts make what a single run makes."
    pytest.importorskip('pyxtf')
    pytest.importorskip('pyogrio')
    survey.main(['--quick', '--only', 'start', 'waterfall 60', 'archive', 'files 6', 'scene 400 fast', '--out',
                 str(tmp_path/'s.json')])
    rows = {r['what']: SimpleNamespace(**r) for r in json.loads((tmp_path/'s.json').read_text())['rows']}
    assert len(rows) == 12 and all(r.peak_mb > 50 and 0 < r.cpu_seconds for r in rows.values())
    assert rows['waterfall'].bytes_in == 1024+60*(256+2*(64+4000)) and rows['waterfall'].megapixels == .24
    assert rows['archive joined'].same and rows['scene all'].objects == 4
    assert rows['files joined'].files['.png'] == 6 and 'seconds_within' in vars(rows['scene all'])
