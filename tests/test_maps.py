"Maps of pictures of any size: the same whether they are read whole or in bands, exact, and in units of the ground."
import json, sqlite3, sys
import numpy as np, pytest, tifffile
from PIL import Image
from scipy import ndimage
from bcd_fast.core import InputError
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.data.maps import column_runs, found_regions, sorted_runs, without
from bcd_fast.prediction.outputs import from_run_lengths, expanded, signed_area
from bcd_fast.prediction.predict import predict_folder

EDGES = np.ones((3, 3))
COUNTED = ('masks', 'probabilities', 'coco', 'geojson', 'overlay')


def spiral(n):
    "One region that goes round and round, one pixel wide."
    a, r, c, step = np.zeros((n, n), bool), 0, 0, 0
    turns = ((0, 1), (1, 0), (0, -1), (-1, 0))
    lengths = [n-1, *(k for k in range(n-1, 0, -2) for _ in range(2))]
    a[0, 0] = True
    for step, length in enumerate(lengths):
        for _ in range(length):
            r, c = r+turns[step % 4][0], c+turns[step % 4][1]
            a[r, c] = True
    return a


def frames(n):
    "Rings in rings: holes with islands in them."
    at = np.abs(np.indices((n, n))-n//2).max(0)
    return at % 2 == 0


def random(share, seed=0, shape=(24, 31)):
    return np.random.default_rng(seed).random(shape) < share


chess = np.indices((9, 12)).sum(0) % 2 == 0 # all touch at corners alone
SHAPES = dict(spiral=spiral(17), frames=frames(15), chess=chess, legs=np.tile([1, 0, 1, 0, 1], (12, 1)) > 0,
              comb=np.vstack([np.tile([1, 0], (8, 6)), np.ones((1, 12), int)]) > 0, full=np.ones((5, 4), bool),
              empty=np.zeros((5, 4), bool), sparse=random(.2), half=random(.45), dense=random(.7),
              line=random(.5, 1, (1, 40)), column=random(.5, 2, (40, 1)))


def banded(mask, at, prob=None):
    for a, b in zip([0, *at], [*at, len(mask)]):
        yield a, mask[a:b], None if prob is None else prob[a:b]


def plain(r):
    return r.area, r.score, r.box, [[ring.tolist() for ring in p] for p in r.polygons]


def drawn(polygons, shape):
    "Pixels inside, by how often a ray to the left crosses a vertical side."
    out = np.zeros((shape[0], shape[1]+1), int)
    for ring in (r for p in polygons for r in p):
        for (x, y), (x2, y2) in zip(ring, ring[1:]):
            if x == x2:
                out[min(y, y2):max(y, y2), x] += 1
    return np.cumsum(out, 1)[:, :-1] % 2 == 1


@pytest.mark.parametrize('name', SHAPES)
def test_no_seam_changes_a_region(name):
    mask = SHAPES[name]
    prob = np.random.default_rng(3).random(mask.shape, dtype=np.float32)
    whole = [plain(r) for r in found_regions(banded(mask, [], prob))]
    for at in [[i] for i in range(1, len(mask))]+[range(1, len(mask)), range(2, len(mask), 3)]:
        assert [plain(r) for r in found_regions(banded(mask, at, prob))] == whole
    label, n = ndimage.label(mask, EDGES)
    assert len(whole) == n
    its = {tuple(b): i for i, b in enumerate(w[2] for w in whole)}
    for i, (rows, cols) in enumerate(ndimage.find_objects(label), 1):
        part = label == i
        box = [cols.start, rows.start, cols.stop-cols.start, rows.stop-rows.start]
        alike = [w for w in whole if w[2] == box and (drawn(w[3], mask.shape) == part).all()]
        assert len(alike) == 1 and alike[0][0] == part.sum() and abs(alike[0][1]-prob[part].mean()) < 2e-5
    assert its or not n


@pytest.mark.parametrize('name', SHAPES)
def test_run_lengths_down_the_columns(name):
    mask = SHAPES[name]
    out = np.zeros(mask.size, int)
    for r in found_regions([(0, mask, None)]):
        for a, b in zip(*column_runs(r, len(mask))):
            out[a:b] += 1
    assert (out.reshape(mask.shape, order='F') == mask).all()


@pytest.mark.parametrize('name', SHAPES)
def test_outlines_are_those_of_gdal(name):
    "Of pixels that touch at sides; ours belong together where they touch at corners."
    features = pytest.importorskip('rasterio.features')
    same = lambda polygons: sorted(sorted(tuple(sorted({*map(tuple, np.asarray(r, int).tolist())})) for r in p)
                                   for p in polygons)
    mask = SHAPES[name]
    theirs = [g['coordinates'] for g, v in features.shapes(mask.astype(np.uint8), connectivity=4) if v]
    assert same(p for r in found_regions([(0, mask, None)]) for p in r.polygons) == same(theirs)


def test_outlines_are_valid():
    shapely = pytest.importorskip('shapely')
    for mask in SHAPES.values():
        for r in found_regions([(0, mask, None)]):
            shape = shapely.MultiPolygon([(p[0], p[1:]) for p in r.polygons])
            assert shape.is_valid and shape.area == r.area


@pytest.mark.parametrize('name', SHAPES)
def test_small_regions_are_left_out_across_seams(name):
    mask = SHAPES[name]
    label, n = ndimage.label(mask, EDGES)
    sizes = np.bincount(label.ravel())
    for least in (1, 2, 5, 40):
        want = mask & (sizes[label] >= least)
        for at in ([], [1], range(1, len(mask))):
            dropped = []
            areas = [r.area for r in found_regions(banded(mask, at), least, dropped)]
            assert sorted(areas) == sorted(s for s in sizes[1:] if s >= least)
            kept = [without(m, a, sorted_runs(dropped)) for a, m, _ in banded(mask, [len(mask)//2])]
            assert (np.concatenate(kept) == want).all()


@pytest.fixture
def predict(model, finds_bright, monkeypatch):
    "Predict in bands of few rows, or whole; returns what was said and the folder."
    def predicts(images, out, bands, write=COUNTED, **least):
        for module in ('tiles', 'predict'):
            monkeypatch.setattr(f'bcd_fast.prediction.{module}.SMALL', 16 if bands else 2**24)
        rows = lambda path, n=7, all=probability_bands: all(path, n)
        monkeypatch.setattr('bcd_fast.prediction.predict.probability_bands', rows)
        return predict_folder(model, images, out, .5, write, **least), out
    from bcd_fast.prediction.predict import probability_bands
    return predicts


def grays(seed, shape=(40, 60)):
    "Grays whose mask has large and small regions; all are away from the threshold."
    a = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.3)
    return np.where(a > .12, 200+40*(a > .3), 40).astype(np.uint8)


def place(folder, name, crs=None, pixel=(.5, .5), corner=(500000, 5300000), seed=0, **kwargs):
    "A TIFF, with a georeference where there is one."
    folder.mkdir(exist_ok=True)
    if crs is None:
        tifffile.imwrite(folder/name, grays(seed, **kwargs), photometric='minisblack')
        return folder/name
    rasterio = pytest.importorskip('rasterio')
    a = grays(seed, **kwargs)
    about = dict(driver='GTiff', height=a.shape[0], width=a.shape[1], count=1, dtype='uint8', crs=crs)
    with rasterio.open(folder/name, 'w', transform=rasterio.transform.from_origin(*corner, *pixel), **about) as f:
        f.write(a, 1)
    return folder/name


@pytest.mark.parametrize('crs', (None, 'EPSG:32633'))
@pytest.mark.parametrize('least', ({}, dict(min_area=12)))
def test_bands_make_what_memory_makes(predict, tmp_path, crs, least):
    path = place(tmp_path/'in', 'a.tif', crs)
    small, large = (predict(path, tmp_path/f'out{b}', b, **least) for b in (False, True))
    for done, _ in (small, large):
        assert (done['written'], done['unreadable'], done['notes']) == (1, [], [])
    read = lambda out, name: json.loads((out/name).read_text())
    a, b = (read(out, 'a.geojson')['features'] for _, out in (small, large))
    score = lambda f: f['properties'].pop('score')
    assert np.allclose([score(f) for f in a], [score(f) for f in b], atol=2e-5) and a == b and len(a) > 3
    a, b = (read(out, 'annotations.json') for _, out in (small, large))
    for content in (a, b):
        assert all(r.pop('score') > .7 for r in content['annotations'])
    assert a == b
    hard = [p for p in small[1].iterdir() if p.name in ('a.png', 'a.tif')][0]
    masks = [np.asarray(Image.open(hard)), tifffile.imread(large[1]/'a.tif')]
    assert (masks[0] == masks[1]).all()
    parts = [from_run_lengths(expanded(r['segmentation']['counts']), (40, 60)) for r in b['annotations']]
    assert (np.sum(parts, 0) == (masks[0] > 0)).all()
    assert [int(p.sum()) for p in parts] == [r['area'] for r in b['annotations']]
    label, n = ndimage.label(grays(0) > 127, EDGES)
    sizes = np.bincount(label.ravel())[1:]
    assert len(parts) == (sizes >= least.get('min_area', 0)).sum() < n+(not least)
    views = [np.asarray(Image.open(out/'a.overlay.png')) for _, out in (small, large)]
    assert (views[0] == views[1]).all()
    assert not [p for p in large[1].iterdir() if p.name.startswith('.writing')]


def test_what_a_polygon_tells(predict, tmp_path):
    done, out = predict(place(tmp_path/'in', 'a.tif', 'EPSG:32633', (.5, .25)), tmp_path/'out', True, ('geojson',))
    features = json.loads((out/'a.geojson').read_text())['features']
    for f in features:
        about = f['properties']
        assert about['source'] == 'a.tif' and 0 < about['score'] <= 1
        assert about['area_m2'] == about['area_pixels']*.125
        shape = f['geometry']
        for outer, *holes in [shape['coordinates']] if shape['type'] == 'Polygon' else shape['coordinates']:
            assert signed_area(outer) > 0 and all(signed_area(h) < 0 for h in holes) and outer[0] == outer[-1]
    assert [p.name for p in out.iterdir() if p.suffix == '.tif'] == []


METRES = dict(
    utm=('EPSG:32633', (.5, .5), (500000, 5300000), .25),
    feet=('EPSG:2225', (10, 10), (6561666, 1640416), 100*(1200/3937)**2),
    mercator=('EPSG:3857', (1, 1), (0, 8399737), .2509), # half as long at 60 degrees north
    degrees=('EPSG:4326', (1e-5, 1e-5), (10, 60), 1.1141*.5580))


@pytest.mark.parametrize('bands', (False, True))
@pytest.mark.parametrize('name', METRES)
def test_units_of_the_ground(predict, tmp_path, name, bands):
    crs, pixel, corner, area = METRES[name]
    path = place(tmp_path/'in', 'a.tif', crs, pixel, corner)
    sizes = {}
    for least in (12, f'{12*area:.6f}m2', f'{12.5*area:.6f}m2'):
        _, out = predict(path, tmp_path/f'out{least}', bands, ('geojson',), min_area=least)
        found = [f['properties'] for f in json.loads((out/'a.geojson').read_text())['features']]
        sizes[least] = sorted(f['area_pixels'] for f in found)
        assert all(abs(f['area_m2']/f['area_pixels']/area-1) < 4e-3 for f in found)
    first, near, above = sizes.values()
    assert above == [s for s in first if s > 12] and set(near) >= set(above) and min(first) >= 12


@pytest.mark.parametrize('bands', (False, True))
@pytest.mark.parametrize('word, value', (('min_area', '2m2'), ('smooth', '1m')))
def test_metres_of_a_picture_that_is_nowhere(predict, tmp_path, word, value, bands):
    if word == 'smooth':
        pytest.importorskip('shapely')
    done, out = predict(place(tmp_path/'in', 'a.tif'), tmp_path/'out', bands, ('geojson',), **{word: value})
    said, = done['unreadable']
    assert said.startswith('a.tif: --') and 'no georeference' in said and 'give pixels' in said
    assert done['written'] == 0 and not [*out.glob('a*')]


@pytest.mark.parametrize('words, said', (
    (['--min-area', '2m'], '--min-area'), (['--smooth', '3m2'], '--smooth'), (['--min-area=-1'], '--min-area'),
    (['--smooth', '1'], '--write geojson')))
def test_words_that_cannot_be(model, tmp_path, capsys, words, said):
    path = place(tmp_path/'in', 'a.tif')
    try:
        status = bcd_predict([str(model), str(path), '--out', str(tmp_path/'out'), *words])
    except SystemExit as e: # words that are no numbers
        status = e.code
    err = capsys.readouterr().err
    assert (status, err.count('\n')) == (2, 1) and said in err and not (tmp_path/'out').exists()


@pytest.mark.parametrize('word, package', (('gpkg', 'pyogrio'), ('cog', 'rasterio')))
def test_a_package_that_is_missing(model, tmp_path, capsys, monkeypatch, word, package):
    for name in [n for n in sys.modules if n.split('.')[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    path = place(tmp_path/'in', 'a.tif')
    status = bcd_predict([str(model), str(path), '--out', str(tmp_path/'out'), '--write', word])
    err = capsys.readouterr().err
    assert (status, err.count('\n')) == (2, 1) and f'{package} is not installed' in err and 'bcd_fast[geo]' in err


@pytest.mark.parametrize('bands', (False, True))
def test_smooth(predict, tmp_path, bands):
    "Fewer corners, valid polygons; areas are those of the pixels."
    shapely = pytest.importorskip('shapely')
    path = place(tmp_path/'in', 'a.tif', 'EPSG:32633')
    corners, areas = [], []
    for smooth in (0, 2, '1m'): # of pixels of half a metre
        _, out = predict(path, tmp_path/f'out{smooth}', bands, ('geojson',), smooth=smooth)
        found = json.loads((out/'a.geojson').read_text())['features']
        shapes = [shapely.geometry.shape(f['geometry']) for f in found]
        assert all(s.is_valid for s in shapes)
        corners.append(sum(map(shapely.get_num_coordinates, shapes)))
        areas.append([f['properties']['area_pixels'] for f in found])
    assert corners[0] > 1.5*corners[1] and corners[1] == corners[2] and areas[0] == areas[1] == areas[2]


@pytest.mark.parametrize('bands', (False, True))
@pytest.mark.parametrize('crs', (None, 'EPSG:32633'))
def test_geopackage(predict, tmp_path, bands, crs):
    "The polygons of the GeoJSON file; another run finds it done, an edited one stays."
    raw = pytest.importorskip('pyogrio.raw')
    path = place(tmp_path/'in', 'a.tif', crs)
    again = lambda: predict(path, tmp_path/'out', bands, ('geojson', 'gpkg'))
    _, out = again()
    about, _, shapes, columns = raw.read(out/'a.gpkg')
    features = json.loads((out/'a.geojson').read_text())['features']
    assert (about['crs'], about['geometry_type']) == ('EPSG:4326' if crs else None, 'MultiPolygon')
    told = dict(zip(about['fields'], columns))
    for name in ('source', 'area_pixels', 'score', *(['area_m2'] if crs else [])):
        assert told[name].tolist() == [f['properties'][name] for f in features]
    assert len(shapes) == len(features) > 3
    shapely = pytest.importorskip('shapely')
    for mine, f in zip(shapely.from_wkb(shapes), features):
        assert mine.is_valid and mine.equals(shapely.geometry.shape(f['geometry']))
    assert again()[0]['skipped'] == 1
    with sqlite3.connect(out/'a.gpkg') as f:
        f.execute('CREATE TABLE more (t TEXT)')
    assert again()[0]['written'] == 1
    with sqlite3.connect(out/'a.gpkg') as f:
        assert f.execute('SELECT count(*) FROM more').fetchall() == [(0,)]
    assert (out/'a.tif.gpkg').is_file()


def test_an_empty_geopackage(predict, tmp_path):
    raw = pytest.importorskip('pyogrio.raw')
    (tmp_path/'in').mkdir()
    tifffile.imwrite(tmp_path/'in/a.tif', np.zeros((20, 30), np.uint8), photometric='minisblack')
    done, out = predict(tmp_path/'in', tmp_path/'out', True, ('gpkg', 'geojson'))
    assert done['written'] == 1 and len(raw.read(out/'a.gpkg')[2]) == 0
    assert json.loads((out/'a.geojson').read_text()) == dict(type='FeatureCollection', features=[])


@pytest.mark.parametrize('bands', (False, True))
@pytest.mark.parametrize('crs', (None, 'EPSG:32633'))
def test_cloud_optimised(predict, tmp_path, bands, crs):
    "Tiles, overviews; all directories, from large to small, lie before the pixels, which go the other way."
    rasterio = pytest.importorskip('rasterio')
    path = place(tmp_path/'in', 'a.tif', crs, shape=(700, 1100))
    write = ('masks', 'probabilities', 'cog') if bands else ('cog',)
    done, out = predict(path, tmp_path/'out', bands, write, min_area=30)
    assert (done['written'], done['unreadable']) == (1, [])
    for name, kind in (('a.cog.tif', 'uint8'), ('a.probability.cog.tif', 'uint16')):
        with rasterio.open(out/name) as f:
            assert f.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG' and f.dtypes == (kind,)
            assert f.block_shapes == [(512, 512)] and f.overviews(1) == [2, 4] and f.compression.name == 'deflate'
            assert (f.crs and f.crs.to_epsg()) == (crs and 32633)
        with tifffile.TiffFile(out/name) as f:
            pages = [*f.pages]
            assert [p.shape for p in pages] == [(700, 1100), (350, 550), (175, 275)]
            heads, data = [p.offset for p in pages], [min(p.dataoffsets) for p in pages]
            assert heads == sorted(heads) and data == sorted(data, reverse=True) and heads[-1] < data[-1]
            assert {*np.unique(pages[-1].asarray())} <= {0, 255} or kind == 'uint16'
    label, _ = ndimage.label(grays(0, (700, 1100)) > 127, EDGES)
    want = np.bincount(label.ravel())[label] >= 30
    assert (tifffile.imread(out/'a.cog.tif') == np.where(want & (label > 0), 255, 0)).all()
    if bands:
        assert (tifffile.imread(out/'a.tif') == tifffile.imread(out/'a.cog.tif')).all()
    assert predict(path, out, bands, write, min_area=30)[0]['skipped'] == 1
    assert predict(path, out, bands, write, min_area=31)[0]['skipped'] == 0


def test_a_large_overlay_is_smaller(predict, tmp_path, monkeypatch):
    "Nothing is lost of a single pixel, and the mean is that of the picture."
    monkeypatch.setattr('bcd_fast.data.maps.factor_of.__defaults__', (20,))
    (tmp_path/'in').mkdir()
    a = np.full((50, 30), 60, np.uint8)
    a[31, 16] = 240
    tifffile.imwrite(tmp_path/'in/a.tif', a, photometric='minisblack')
    _, out = predict(tmp_path/'in', tmp_path/'out', True, ('overlay',))
    view = np.asarray(Image.open(out/'a.overlay.png'))
    assert view.shape == (17, 10, 3)
    coloured = np.argwhere(view[..., 0] != view[..., 2]).tolist()
    assert coloured == [[10, 5]] and (view[0, 0] == 60).all()


def test_no_georeference_half_way(predict, tmp_path, monkeypatch):
    "Some pixels lie nowhere: all polygons are in pixels, and a note says so."
    path = place(tmp_path/'in', 'a.tif', 'EPSG:32633')
    for bands in (False, True):
        def fails(polygons, to_map):
            raise ValueError('pixels lie past the earth')
        monkeypatch.setattr('bcd_fast.prediction.outputs.on_map', fails)
        done, out = predict(path, tmp_path/f'out{bands}', bands, ('geojson', 'coco'))
        assert 'past the earth' in done['notes'][0] and done['written'] == 1
        found = json.loads((out/'a.geojson').read_text())['features']
        assert {f['properties']['coordinates'][:6] for f in found} == {'pixels'}
        assert len(json.loads((out/'annotations.json').read_text())['annotations']) == len(found)


@pytest.mark.slow
def test_time_is_that_of_the_regions():
    "Twice the rows take twice the time, about; and memory is that of a band."
    import time, tracemalloc
    band = np.zeros((256, 4096), bool)
    band[4::16, ::8] = band[5::16, ::8] = True
    took, most = [], []
    for n in (4, 16):
        tracemalloc.start()
        start = time.process_time()
        count = sum(1 for _ in found_regions((256*i, band, None) for i in range(n)))
        took.append(time.process_time()-start)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == n*16*512
    assert took[1] < 8*took[0] and most[1] < 1.5*most[0]


def test_measures_are_read():
    with pytest.raises(InputError, match='--min-area'):
        predict_folder('nothing', 'nothing', 'nothing', min_area='2 acres')
