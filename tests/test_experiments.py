"""Every experiment of the paper by name, made tiny, on its stand-in."""
import json
import pytest
from bcd_fast.experiments import EXPERIMENTS, compose_config
from bcd_fast.runs import METRICS, run_experiment

TINY = ['data.n_objects=120', 'data.n_backgrounds=120', 'encoder.epochs=1', 'encoder.steps=8', 'encoder.bs=16', 'trainer.epochs=1', 'trainer.steps=2',
        'trainer.bs=4', 'model.width=4', 'cluster.k=2', 'cluster.least=2', 'bar=false']


@pytest.mark.parametrize('name', [e for e in EXPERIMENTS if e != 'folder'])
def test_experiment(name, tmp_path):
    sweep = ['cluster.sweep=[2,3]'] if EXPERIMENTS[name]['stage'] == 1 else []
    cfg = compose_config([f'experiment={name}', *TINY, *sweep, f'cache={tmp_path}/cache'])
    metrics, left_out = run_experiment(cfg, name, tmp_path/'run', say=lambda s: None)
    assert left_out == [] and tuple(json.loads((tmp_path/'run/metrics.json').read_text())) == METRICS
    written = {p.name for p in (tmp_path/'run').iterdir()}
    if cfg.stage == 1: assert {'clusters.png', 'sweep.png', 'sweep.csv', 'assignment.csv', 'confusion.png'} <= written
    else:
        assert {'clusters.png', 'masks.png', 'counterfactuals.png', 'losses.png', 'model'} <= written and 0 <= metrics['iou'] <= 1
        assert ('scene.png' in written) == (name == 'sss_segmentation') == (metrics['sites_iou'] is not None)
    assert 'stand-in' in metrics['source'] or 'scikit' in metrics['source']


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    "One stage 1 for all divergences."
    return tmp_path_factory.mktemp('cache')


@pytest.mark.parametrize('name, on', [('energy', 'patches'), ('mmd', 'features'), ('sinkhorn', 'patches'), ('dswd', 'patches'), ('max_sw', 'features'), ('ebsw', 'pixels')])
def test_divergence(name, on, tmp_path, cache):
    cfg = compose_config(['experiment=demo', f'divergence={name}', f'divergence.on={on}', *TINY, f'cache={cache}'])
    metrics, _ = run_experiment(cfg, 'demo', tmp_path/'run', say=lambda s: None)
    assert metrics['divergence'] == f'{name}_on_{on}' and 0 <= metrics['iou'] <= 1
