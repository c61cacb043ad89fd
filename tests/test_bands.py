"Pictures of four bands, as a Python program writes them: from the check to masks and overlays."
import json
from types import SimpleNamespace
import numpy as np, pytest, tifffile
from PIL import Image
from bcd_fast.data.datasets import load_dataset
from conftest import SHORT, within

pytestmark = pytest.mark.slow # a check and a training, in 16 seconds


def four_bands(a):
    "A gray picture as four bands of 16 bits: two as they are, speckle that is bright where it is, heights."
    rng = np.random.default_rng(int(a.sum()))
    bands = 90*a+500., 20*a+3000., (1+a)*rng.exponential(1, a.shape), rng.normal(9000, 300, a.shape)
    return np.stack(bands, -1).clip(0, 65535).astype(np.uint16)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "The folder with `scenes/`, `top`, and what three commands said."
    top = tmp_path_factory.mktemp('bands')
    ds = load_dataset(n_objects=60, n_backgrounds=60)
    for what, d in dict(objects=ds.objects, backgrounds=ds.backgrounds).items():
        (top/'scenes'/what).mkdir(parents=True)
        for i, a in enumerate(d.images):
            tifffile.imwrite(top/f'scenes/{what}/{i:02}.tif', four_bands(a[0].astype(float))) # calls band 4 opacity
    words = [*(w for w in SHORT if not w.startswith('cluster.k')), 'cluster.k=1']
    write = ['--write', 'masks', 'overlay']
    commands = dict(check=['bcd_check', 'scenes'],
                    train=['bcd_train', 'data=folder', 'data.path=scenes', 'hydra.run.dir=run', *words],
                    predict=['bcd_predict', 'run/model', 'scenes/objects', '--out', 'out', *write])
    return SimpleNamespace(top=top, **{name: within(c, top) for name, c in commands.items()})


def test_check(scenes):
    _, out, err = scenes.check
    assert 'sensors: all pictures are of one kind: 4 bands of 16 bits.' in out
    assert 'reading: pictures: 4 channels, 16 bits, normalised by logarithms of 1 band' in out
    assert 'Traceback' not in err


def test_train(scenes):
    status, out, err = scenes.train
    assert status == 0, err
    line, = [words for words in out.splitlines() if words.startswith('pictures:')]
    assert line.startswith('pictures: 4 channels, 16 bits, normalised by logarithms of 1 band, then by quantiles')


def test_model(scenes):
    about = json.loads((scenes.top/'run/model/model.json').read_text())
    assert about['masker']['channels'] == 4
    assert [k > 0 for k in about['normalisation']['knee']] == [False, False, True, False]


def test_predict(scenes):
    "The overlay shows the first three bands."
    status, out, err = scenes.predict
    assert status == 0 and out.startswith('60 pictures'), err
    assert np.array(Image.open(scenes.top/'out/00.png')).shape == (64, 64)
    assert np.array(Image.open(scenes.top/'out/00.overlay.png')).shape == (64, 64, 3)


def test_another_sensor(scenes):
    "Gray pictures are nothing for a model of four bands, and one sentence says so."
    (scenes.top/'gray').mkdir()
    tifffile.imwrite(scenes.top/'gray/a.tif', np.ones((64, 64), np.uint16))
    status, _, err = within(['bcd_predict', 'run/model', 'gray', '--out', 'none'], scenes.top)
    assert status == 2
    assert 'channels: 1 there, 4 asked for' in err and 'Traceback' not in err
