"""Every experiment of the paper by name, made tiny, on its stand-in."""
import json
from contextlib import nullcontext
import numpy as np, pytest
from PIL import Image
from bcd_fast.experiments.catalogue import EXPERIMENTS, compose_config
from bcd_fast.experiments.runs import METRICS, run_experiment
from conftest import dots

TINY = ['data.n_objects=120', 'data.n_backgrounds=120', 'encoder.epochs=1', 'encoder.steps=8', 'encoder.bs=16',
        'trainer.epochs=1', 'trainer.steps=2', 'trainer.bs=4', 'model.width=4', 'cluster.k=2', 'cluster.least=2',
        'bar=false']
CLUSTERS = {'clusters.png', 'sweep.png', 'sweep.csv', 'assignment.csv', 'confusion.png'} # of stage 1 alone
DRAWN = 'cl', 'synthetic_segmentation', 'sss_segmentation' # stage 1 alone, both stages, whole strips
MASKS = {'clusters.png', 'masks.png', 'counterfactuals.png', 'losses.png', 'model'} # of both stages


def read(path):
    "What a JSON file says."
    return json.loads(path.read_text())


@pytest.mark.parametrize('name', [e for e in EXPERIMENTS if e != 'folder'])
def test_experiment(name, tmp_path):
    sweep = ['cluster.sweep=[2,3]'] if EXPERIMENTS[name]['stage'] == 1 else []
    cfg = compose_config([f'experiment={name}', *TINY, *sweep, f'cache={tmp_path}/cache'])
    with nullcontext() if name in DRAWN else dots():
        metrics, left_out = run_experiment(cfg, name, tmp_path/'run', say=lambda s: None)
    assert left_out == []
    assert tuple(read(tmp_path/'run/metrics.json')) == METRICS
    written = {p.name for p in (tmp_path/'run').iterdir()}
    assert (CLUSTERS if cfg.stage == 1 else MASKS) <= written
    if cfg.stage != 1:
        assert 0 <= metrics['iou'] <= 1
        assert ('scene.png' in written) == (name == 'sss_segmentation') == (metrics['sites_iou'] is not None)
    assert 'stand-in' in metrics['source'] or 'scikit' in metrics['source']


@pytest.fixture
def strips(tmp_path):
    "Eight strips with squares of gray 127 in their maps, brighter in their images."
    rng = np.random.default_rng(0)
    for what in ('images', 'labels'):
        (tmp_path/'strips'/what).mkdir(parents=True)
    for i in range(8):
        label, image = np.zeros((70, 500), np.uint8), rng.integers(40, 90, (70, 500))
        label[:, 320:] = 255
        for x in range(60, 460, 100):
            label[20:44, x:x+24] = 127
        image[label == 127] += 100
        for what, a in dict(images=image.astype(np.uint8), labels=label).items():
            Image.fromarray(a).save(tmp_path/f'strips/{what}/{i}.png')
    return tmp_path/'strips'


def test_regions(strips, tmp_path):
    "One gray of the maps is the object, another pair of strips is the test with another seed of the data."
    data = ['data=regions', f'data.path={strips}', 'data.kind=127', 'data.seed=1', 'data.normalise=local']
    cfg = compose_config(['experiment=sss_segmentation', *data, *TINY, f'cache={tmp_path}/cache'])
    said = []
    metrics, left_out = run_experiment(cfg, 'sss_segmentation', tmp_path/'run', say=said.append)
    assert left_out == []
    assert '2 of 8 for the test' in metrics['source']
    assert 0 <= metrics['iou'] <= 1
    assert set(read(tmp_path/'run/scenes.json')['scenes']) == {'2', '3'}
    assert read(tmp_path/'run/model/model.json')['normalisation']['name'] == 'local'
    assert any('clusters are unsure' in m for m in said) == (metrics['cluster_stability'] < .3)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    "One stage 1 for all divergences."
    return tmp_path_factory.mktemp('cache')


ON = dict(energy='patches', mmd='features', sinkhorn='patches', dswd='patches', max_sw='features', ebsw='pixels')


@pytest.mark.parametrize('name, on', ON.items())
def test_divergence(name, on, tmp_path, cache):
    cfg = compose_config(['experiment=demo', f'divergence={name}', f'divergence.on={on}', *TINY, f'cache={cache}'])
    metrics, _ = run_experiment(cfg, 'demo', tmp_path/'run', say=lambda s: None)
    assert metrics['divergence'] == f'{name}_on_{on}'
    assert 0 <= metrics['iou'] <= 1
