"Georeferences of images are those of their masks, for small pictures and for large ones that are read in bands."
import json
import numpy as np, pytest, torch
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from bcd_fast.prediction.predict import predict_folder

rasterio = pytest.importorskip('rasterio')
from rasterio.transform import from_origin
from rasterio.warp import transform

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


def bright(model, x):
    "A masker that can be reckoned with."
    return np.where(np.isnan(x[:, 0]), 0, x[:, 0]).astype(np.float32)


@pytest.fixture
def predict(survey, monkeypatch):
    "A function that masks the survey, read as a whole or in bands, and gives the folder of the masks."
    def predicts(bands, what):
        for module in ('tiles', 'predict'):
            monkeypatch.setattr(f'bcd_fast.prediction.{module}.SMALL', 16 if bands else 2**24)
            monkeypatch.setattr(f'bcd_fast.prediction.{module}.predict_batch', bright)
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
