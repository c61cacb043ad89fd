"From a folder of 16-bit pictures to masks with three commands, to ONNX with a fourth."
import json
import numpy as np, pytest
from PIL import Image
from bcd_fast.data.datasets import load_dataset
from conftest import SHORT, start


@pytest.fixture(scope='module')
def survey(tmp_path_factory):
    "`survey/` with pictures of 80x72 pixels, one of them broken, and what the three commands said."
    top = tmp_path_factory.mktemp('survey')
    ds = load_dataset(n_objects=120, n_backgrounds=120)
    for what, d in dict(objects=ds.objects, backgrounds=ds.backgrounds).items():
        (top/'survey'/what).mkdir(parents=True)
        for i, a in enumerate(d.images):
            Image.fromarray(a[0].astype(np.uint16)*80+3000).resize((80, 72), Image.NEAREST).save(top/f'survey/{what}/{i:03}.png')
    (top/'survey/objects/broken.png').write_bytes(b'no picture')
    words = [w for w in SHORT if not w.startswith(('trainer.bs', 'cluster.k'))]
    return top, start(['bcd_check', 'survey'], top), start(['bcd_train', 'data=folder', 'data.path=survey', 'hydra.run.dir=run', *words], top), \
        start(['bcd_predict', 'run/model', 'survey/objects', '--out', 'out', '--write', 'masks', 'probabilities', 'coco'], top)


def test_check(survey):
    top, (status, out, err), _, _ = survey
    assert status == 1 and 'broken.png cannot be read' in out and 'warning  numbers: 120 objects' in out and 'uint16' in out and 'Traceback' not in err
    assert (top/'bcd_check.html').read_text().count('<img alt') == 4


def test_train(survey):
    top, _, (status, out, err), _ = survey
    assert status == 2 and 'broken.png cannot be read' in err and 'Traceback' not in err # all the rest is done
    assert 'chosen for these images: cluster.k=2 trainer.bs=32' in out
    about = json.loads((top/'run/model/model.json').read_text())
    assert about['normalisation']['high'] > 3000 and about['scale'] == pytest.approx(64/72)
    assert 'No true masks were given' in (top/'run/model/README.md').read_text() and 'divergence' in (top/'run/report.html').read_text()


def test_predict(survey):
    top, _, _, (status, out, err) = survey
    assert status == 2 and 'broken.png' in err and out.startswith('120 pictures')
    assert np.array(Image.open(top/'out/000.png')).shape == (72, 80)
    assert len(json.loads((top/'out/annotations.json').read_text())['images']) == 120


def test_export(survey, call):
    top, *_ = survey
    status, out, err = start(['bcd_export', 'run/model', '--onnx', 'm.onnx'], top)
    assert status == 0 and 'differs from the model by at most' in out, err
    status, out, err = call('bcd_export', 'survey', '--onnx', 'n.onnx', folder=top)
    assert status == 2 and 'no model folder' in err and not (top/'n.onnx').exists()


def test_check_of_nothing(call):
    status, out, err = call('bcd_check', 'nowhere')
    assert status == 2 and 'nowhere' in err and len(err.strip().splitlines()) == 1
