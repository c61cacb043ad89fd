"Georeferences of images are those of their masks, for small pictures and for large ones that are read in bands."
import json
import numpy as np, pytest, tifffile, torch
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from bcd_fast.prediction.predict import predict_folder

rasterio = pytest.importorskip('rasterio')
from rasterio.transform import from_origin
from rasterio.warp import transform

pytestmark = pytest.mark.usefixtures('finds_bright')

WEST, NORTH, WIDE, HIGH = 500000.5, 5300000.25, .2, .25 # corner and pixel, metres
WHERE = dict(crs='EPSG:32633', transform=from_origin(WEST, NORTH, WIDE, HIGH))
TIFF = dict(driver='GTiff', count=1, dtype='uint8', nodata=0, tiled=True, blockxsize=64, blockysize=64)


@pytest.fixture
def survey(tmp_path):
    "A model that masks what is bright, and a GeoTIFF with a bright rectangle and pixels without data."
    torch.manual_seed(0)
    masker = make_masker('small', 4, 1)
    image = np.full((160, 224), 40, np.uint8)
    image[64:96, 96:160], image[:, :5] = 220, 0
    (tmp_path/'in').mkdir()
    with rasterio.open(tmp_path/'in/site.tif', 'w', height=160, width=224, **TIFF, **WHERE) as f:
        f.write(image, 1)
    save_model(tmp_path/'model', masker, 64, dict(k=2, assign='robust', backgrounds=[3, 4]))
    return tmp_path


@pytest.fixture
def predict(survey, monkeypatch):
    "A function that masks the survey, read as a whole or in bands, and gives the folder of the masks."
    def predicts(bands, what):
        for module in ('tiles', 'predict'):
            monkeypatch.setattr(f'bcd_fast.prediction.{module}.SMALL', 16 if bands else 2**24)
        done = predict_folder(survey/'model', survey/'in', survey/'out', .5, what)
        assert done['written'] == 1 and not done['unreadable'], done
        return survey/'out'
    return predicts


@pytest.mark.parametrize('bands', (False, True))
def test_georeference(predict, bands):
    out = predict(bands, ('masks', 'probabilities'))
    with rasterio.open(out/'site.tif') as f:
        assert f.crs.to_epsg() == 32633 and f.transform == WHERE['transform'] and f.shape == (160, 224)
        mask = f.read(1)
    assert (mask[66:94, 98:158] == 255).all()
    assert not mask[:60].any() and not mask[:, :5].any()
    with rasterio.open(out/'site.probability.tif') as f:
        assert f.dtypes == ('uint16',) and f.crs.to_epsg() == 32633


def test_outline(predict):
    "The corners of the rectangle, in degrees, lie where its pixels do."
    out = predict(False, ('masks', 'probabilities', 'geojson'))
    shape, = json.loads((out/'site.geojson').read_text())['features']
    ring = zip(*shape['geometry']['coordinates'][0])
    east, north = map(np.array, transform('EPSG:4326', WHERE['crs'], *ring))
    assert abs(east.min()-(WEST+96*WIDE)) < WIDE and abs(east.max()-(WEST+160*WIDE)) < WIDE
    assert abs(north.max()-(NORTH-64*HIGH)) < HIGH and abs(north.min()-(NORTH-96*HIGH)) < HIGH


def signed_area(ring):
    x, y = np.array(ring).T
    return ((x[:-1]-x[0])*(y[1:]-y[0])-(x[1:]-x[0])*(y[:-1]-y[0])).sum()/2


def place(survey, name, driver='GTiff', crs='EPSG:32633', affine=WHERE['transform']):
    "A picture with a bright frame, somewhere."
    image = np.full((64, 96), 40, np.uint8)
    image[16:48, 16:64], image[24:40, 24:40] = 220, 40
    path = survey/'in'/name
    with rasterio.open(path, 'w', driver, 96, 64, 1, crs, affine, 'uint8') as f:
        f.write(image, 1)
    return path


ODD = dict(
    local=dict(crs='LOCAL_CS["site",UNIT["metre",1]]'),
    engineering=dict(crs='ENGCRS["g",EDATUM["d"],CS[Cartesian,2],AXIS["e",east],AXIS["n",north],LENGTHUNIT["m",1]]'),
    accents=dict(crs='LOCAL_CS["Ærø, Łódź",UNIT["metre",1]]'),
    far=dict(affine=from_origin(1e12, 1e12, 1e6, 1e6)),
    space=dict(crs='+proj=ortho +lat_0=0 +lon_0=0', affine=from_origin(-7e6, 7e6, 1e5, 1e5)),
    degrees=dict(crs='EPSG:4326'),
    nowhere=dict(crs=None))


@pytest.mark.parametrize('bands', (False, True))
@pytest.mark.parametrize('name', ODD)
def test_georeferences_that_cannot_be_used(survey, monkeypatch, name, bands):
    "Outlines are in pixels, and it is said why; masks keep what the picture has; the other file is as ever."
    path, what = place(survey, f'{name}.tif', **ODD[name]), ('masks',) if bands else ('masks', 'geojson')
    for module in ('tiles', 'predict'):
        monkeypatch.setattr(f'bcd_fast.prediction.{module}.SMALL', 16 if bands else 2**24)
    done = predict_folder(survey/'model', survey/'in', survey/'out', .5, what)
    assert (done['written'], done['unreadable']) == (2, [])
    with rasterio.open(path) as was, rasterio.open(survey/f'out/{name}.tif') as f:
        assert (f.crs, f.transform) == (was.crs, was.transform)
    if bands:
        return
    note, = done['notes']
    assert name in note and 'in pixels' in note and '\n' not in note and len(note) < 500
    feature, = json.loads((survey/f'out/{name}.geojson').read_text())['features']
    outer, hole = feature['geometry']['coordinates']
    assert 'pixels' in feature['properties']['coordinates']
    assert np.abs(np.ptp(outer, axis=0)-[48, 32]).max() <= 2 and np.abs(np.ptp(hole, axis=0)-16).max() <= 2
    assert signed_area(outer) > 0 > signed_area(hole)
    found = json.loads((survey/'out/site.geojson').read_text())['features'][0]
    assert 'longitude' in found['properties']['coordinates']


@pytest.mark.parametrize('driver, name', (('GTiff', 'a.tif'), ('JP2OpenJPEG', 'a.jp2')))
@pytest.mark.parametrize('affine', (WHERE['transform'], WHERE['transform']*WHERE['transform'].scale(1, -1)))
def test_rings_follow_the_standard(survey, monkeypatch, driver, name, affine):
    "North-up or south-up: the outer ring against the clock in longitude and latitude, holes with it."
    path = place(survey, name, driver, affine=affine)
    done = predict_folder(survey/'model', path, survey/'out', .5, ('masks', 'geojson'))
    assert (done['written'], done['unreadable'], done['notes']) == (1, [], [])
    found = json.loads((survey/'out/a.geojson').read_text())
    assert {*found} == {'type', 'features'}
    outer, hole = found['features'][0]['geometry']['coordinates']
    assert signed_area(outer) > 0 > signed_area(hole)
    assert all(r[0] == r[-1] and len(r) >= 4 for r in (outer, hole)) and abs(outer[0][0]-15) < .01
    with rasterio.open(path) as was, rasterio.open(survey/'out/a.tif') as f:
        assert (f.crs.to_epsg(), f.transform) == (32633, was.transform)


def test_outlines_on_a_globe(survey, monkeypatch):
    "The corners of the picture look past the earth, what is in it does not."
    disc = dict(crs='+proj=ortho +lat_0=0 +lon_0=0', affine=from_origin(-7e6, 7e6, 14e6/96, 14e6/64))
    path = place(survey, 'globe.tif', **disc)
    done = predict_folder(survey/'model', path, survey/'out', .5, ('geojson',))
    assert (done['written'], done['notes']) == (1, [])
    outer, hole = json.loads((survey/'out/globe.geojson').read_text())['features'][0]['geometry']['coordinates']
    assert signed_area(outer) > 0 > signed_area(hole) and np.abs(outer).max() <= 90


def in_file(path, *pages):
    "A TIFF whose pages lie at some easting (UTM), or nowhere; one pixel in four of a preview."
    with tifffile.TiffWriter(path) as f:
        for east, step in pages:
            keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)
            tags = [(33550, 12, 3, (WIDE, HIGH, 0.), True), (33922, 12, 6, (0., 0., 0., east, NORTH, 0.), True),
                    (34735, 3, 12, keys, True)] if east else []
            image = np.full((64, 96), 40, np.uint8)
            image[16:48, 16:64] = 220
            f.write(image[::step, ::step], subfiletype=int(step > 1), extratags=tags, metadata=None)
    return path


@pytest.mark.parametrize('bands', (False, True))
def test_pages_lie_where_they_say(survey, monkeypatch, bands):
    "Each page has a georeference of its own; a preview before the picture has none."
    path = in_file(survey/'in/pages.tif', (WEST, 1), (WEST+1e5, 1))
    in_file(survey/'in/preview.tif', (None, 4), (WEST, 1))
    for module in ('tiles', 'predict'):
        monkeypatch.setattr(f'bcd_fast.prediction.{module}.SMALL', 16 if bands else 2**24)
    what = ('masks',) if bands else ('masks', 'geojson')
    done = predict_folder(survey/'model', survey/'in', survey/'out', .5, what)
    assert (done['unreadable'], done['notes']) == ([], []) and path.is_file()
    for name, east in (('pages_0', WEST), ('pages_1', WEST+1e5), ('preview', WEST)):
        with rasterio.open(survey/f'out/{name}.tif') as f:
            assert (f.transform.c, f.transform.f, f.crs.to_epsg()) == (east, NORTH, 32633)
        if not bands:
            ring = json.loads((survey/f'out/{name}.geojson').read_text())['features'][0]['geometry']['coordinates'][0]
            x, y = transform('EPSG:4326', 'EPSG:32633', *zip(*ring))
            assert abs(min(x)-east-16*WIDE) < WIDE and abs(max(x)-east-64*WIDE) < WIDE


GLOBE = dict(
    utm=('EPSG:32660', from_origin(719500, 5.4e6, 100, 100), 1.),
    pacific=('EPSG:3832', from_origin(3334000, -2e6, 200, 200), 1.),
    world=('EPSG:4326', from_origin(-180, 80, 3.75, 2.5), 360.))


@pytest.mark.parametrize('name', GLOBE)
def test_outlines_across_the_date_line(survey, monkeypatch, name):
    "Longitudes go on past 180 degrees, so that no outline goes round the earth; one that is so wide stays wide."
    crs, affine, widest = GLOBE[name]
    path = place(survey, f'{name}.tif', crs=crs, affine=affine)
    done = predict_folder(survey/'model', path, survey/'out', .5, ('geojson',))
    assert done['notes'] == []
    outer, hole = json.loads((survey/f'out/{name}.geojson').read_text())['features'][0]['geometry']['coordinates']
    assert signed_area(outer) > 0 > signed_area(hole)
    (west, _), (east, _) = np.min(outer, 0), np.max(outer, 0)
    assert widest/20 < east-west < widest and west < np.min(hole, 0)[0] and np.max(hole, 0)[0] < east


def test_no_outline_around_a_pole(survey, monkeypatch):
    path = place(survey, 'pole.tif', crs='EPSG:3413', affine=from_origin(-36000, 32000, 1000, 1000))
    note, = predict_folder(survey/'model', path, survey/'out', .5, ('geojson',))['notes']
    assert 'pixels' in note and 'pole' in note


@pytest.mark.parametrize('name', ('a.tfw', 'a.tif.aux.xml'))
def test_a_place_beside_the_picture_is_told(survey, name):
    tifffile.imwrite(survey/'in/a.tif', np.full((64, 96), 40, np.uint8))
    (survey/'in'/name).write_text('<PAMDataset><GeoTransform>1,2,3,4,5,6</GeoTransform></PAMDataset>')
    note, = predict_folder(survey/'model', survey/'in', survey/'out')['notes']
    assert name in note and 'a.tif' in note
