"From a folder of 16-bit pictures to masks with three commands, to ONNX with a fourth."
import json
from types import SimpleNamespace
import numpy as np, pytest
from PIL import Image
from bcd_fast.data.datasets import load_dataset
from conftest import SHORT, start, within


def write_pictures(folder):
    "Pictures of 80x72 pixels and 16 bits, one of them broken."
    ds = load_dataset(n_objects=120, n_backgrounds=120)
    for what, d in dict(objects=ds.objects, backgrounds=ds.backgrounds).items():
        (folder/what).mkdir(parents=True)
        for i, a in enumerate(d.images):
            deep = Image.fromarray(a[0].astype(np.uint16)*80+3000)
            deep.resize((80, 72), Image.NEAREST).save(folder/f'{what}/{i:03}.png')
    (folder/'objects/broken.png').write_bytes(b'no picture')


@pytest.fixture(scope='module')
def survey(tmp_path_factory):
    "The folder with `survey/`, `top`, and what the three commands said."
    top = tmp_path_factory.mktemp('survey')
    write_pictures(top/'survey')
    words = [w for w in SHORT if not w.startswith(('trainer.bs', 'cluster.k'))]
    write = ['--write', 'masks', 'probabilities', 'coco']
    commands = dict(check=['bcd_check', 'survey'],
                    train=['bcd_train', 'data=folder', 'data.path=survey', 'hydra.run.dir=run', *words],
                    predict=['bcd_predict', 'run/model', 'survey/objects', '--out', 'out', *write])
    how = dict(check=start, train=start, predict=within) # as a user starts them, but test_commands.py starts the last
    return SimpleNamespace(top=top, **{name: how[name](c, top) for name, c in commands.items()})


@pytest.mark.slow
def test_check(survey):
    status, out, err = survey.check
    assert status == 1
    for part in ('broken.png cannot be read', 'warning  numbers: 120 objects', 'uint16'):
        assert part in out
    assert 'Traceback' not in err
    assert (survey.top/'bcd_check.html').read_text().count('<img alt') == 4


@pytest.mark.slow
def test_train(survey):
    "One picture is named; all the rest is done."
    status, out, err = survey.train
    assert status == 2
    assert 'broken.png cannot be read' in err and 'Traceback' not in err
    assert 'chosen for these images: cluster.k=2 trainer.bs=32' in out


@pytest.mark.slow
def test_model(survey):
    about = json.loads((survey.top/'run/model/model.json').read_text())
    assert about['normalisation']['high'] > 3000
    assert about['scale'] == pytest.approx(64/72)
    assert 'No true masks were given' in (survey.top/'run/model/README.md').read_text()
    assert 'divergence' in (survey.top/'run/report.html').read_text()


@pytest.mark.slow
def test_predict(survey):
    status, out, err = survey.predict
    assert status == 2
    assert 'broken.png' in err and out.startswith('120 pictures')
    assert np.array(Image.open(survey.top/'out/000.png')).shape == (72, 80)
    assert len(json.loads((survey.top/'out/annotations.json').read_text())['images']) == 120


@pytest.mark.slow
def test_export(survey, call):
    status, out, err = start(['bcd_export', 'run/model', '--onnx', 'm.onnx'], survey.top)
    assert status == 0 and 'differs from the model by at most' in out, err
    status, out, err = call('bcd_export', 'survey', '--onnx', 'n.onnx', folder=survey.top)
    assert status == 2 and 'no model folder' in err
    assert not (survey.top/'n.onnx').exists()


def test_check_of_nothing(call):
    status, out, err = call('bcd_check', 'nowhere')
    assert status == 2 and 'nowhere' in err and len(err.strip().splitlines()) == 1
