"Georeferences of images are those of their masks, for small pictures and for large ones that are read in bands."
import json
from unittest.mock import patch
import numpy as np, pytest, torch
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from bcd_fast.prediction.predict import predict_folder

rasterio = pytest.importorskip('rasterio')
from rasterio.transform import from_origin
from rasterio.warp import transform

WHERE = dict(crs='EPSG:32633', transform=from_origin(500000.5, 5300000.25, .2, .25))


@pytest.fixture
def survey(tmp_path):
    "A model that masks what is bright, and a GeoTIFF with a bright rectangle and pixels without data."
    torch.manual_seed(0)
    masker = make_masker('small', 4, 1)
    image = np.full((160, 224), 40, np.uint8)
    image[64:96, 96:160], image[:, :5] = 220, 0
    (tmp_path/'in').mkdir()
    with rasterio.open(tmp_path/'in/site.tif', 'w', driver='GTiff', height=160, width=224, count=1, dtype='uint8', nodata=0, tiled=True, blockxsize=64, blockysize=64, **WHERE) as f:
        f.write(image, 1)
    save_model(tmp_path/'model', masker, 64, dict(k=2, assign='robust', backgrounds=[3, 4]))
    return tmp_path


@pytest.mark.parametrize('bands', (False, True))
def test_georeference(survey, bands):
    bright = lambda model, x: np.where(np.isnan(x[:, 0]), 0, x[:, 0]).astype(np.float32) # a masker that can be reckoned with
    with patch('bcd_fast.prediction.tiles.SMALL', 16 if bands else 2**24), patch('bcd_fast.prediction.predict.SMALL', 16 if bands else 2**24), \
         patch('bcd_fast.prediction.tiles.predict_batch', bright), patch('bcd_fast.prediction.predict.predict_batch', bright):
        done = predict_folder(survey/'model', survey/'in', survey/'out', .5, ('masks', 'probabilities') if bands else ('masks', 'probabilities', 'geojson'))
    assert done['written'] == 1 and not done['unreadable'], done
    with rasterio.open(survey/'out/site.tif') as f:
        assert f.crs.to_epsg() == 32633 and f.transform == WHERE['transform'] and f.shape == (160, 224)
        mask = f.read(1)
    assert (mask[66:94, 98:158] == 255).all() and not mask[:60].any() and not mask[:, :5].any()
    with rasterio.open(survey/'out/site.probability.tif') as f:
        assert f.dtypes == ('uint16',) and f.crs.to_epsg() == 32633
    if bands:
        return
    shape, = json.loads((survey/'out/site.geojson').read_text())['features']
    east, north = map(np.array, transform('EPSG:4326', WHERE['crs'], *zip(*shape['geometry']['coordinates'][0])))
    assert abs(east.min()-(500000.5+96*.2)) < .2 and abs(east.max()-(500000.5+160*.2)) < .2
    assert abs(north.max()-(5300000.25-64*.25)) < .25 and abs(north.min()-(5300000.25-96*.25)) < .25
