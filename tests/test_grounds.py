"Data whose grounds are too few or too alike for clusters train by default, and say that the condition is left out."
import json
from contextlib import nullcontext
import numpy as np
import pytest
from PIL import Image
from conftest import dots
from bcd_fast.core import InputError
from bcd_fast.segmenter import Segmenter
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.runs import evaluate_run, resume_run, run_experiment
from bcd_fast.experiments.search import search_settings

SHORT = ('encoder.epochs=1', 'encoder.steps=10', 'trainer.epochs=1', 'trainer.steps=2', 'model.width=4', 'bar=false')
LINE = 'trained without the condition on the background (cluster.k=1)'


def fine(n, seed):
    "(n,32,32) uint8, noise from pixel to pixel."
    return np.random.default_rng(seed).normal(110, 25, (n, 32, 32)).clip(0, 255).astype(np.uint8)


def alike(n, seed):
    "The same, every second picture a little brighter: hardly another ground."
    return np.where(np.arange(n)[:, None, None] % 2, fine(n, seed), fine(n, seed+1)+1).astype(np.uint8)


def coarse(n, seed):
    "(n,32,32) uint8, noise of squares of 8 pixels."
    small = np.random.default_rng(seed).normal(110, 25, (n, 4, 4)).clip(0, 255)
    return small.repeat(8, 1).repeat(8, 2).astype(np.uint8)


def flat(n, seed):
    "(n,32,32) uint8, all of one gray."
    return np.full((n, 32, 32), 110, np.uint8)


def both(n, seed):
    "Two kinds of ground."
    return np.concatenate([fine(n//2, seed), coarse(n-n//2, seed)])


def discs(grounds, seed=5):
    "A bright disc on each."
    out, (y, x) = grounds.copy(), np.mgrid[:32, :32]
    for picture, (i, j) in zip(out, np.random.default_rng(seed).uniform(8, 24, (len(out), 2))):
        picture[(y-i)**2+(x-j)**2 < 36] = 240
    return out


KINDS = {  # ground of the objects, of the backgrounds, how many of each, what is said
    'one noise': (fine, fine, 240, 240, 'too alike for 2 clusters'),
    'two alike grounds': (alike, alike, 150, 150, 'too alike for 2 clusters'),
    'one gray': (flat, flat, 60, 60, 'all backgrounds fall into one'),
    'twelve of each': (fine, fine, 12, 12, 'too few for clusters (8 backgrounds)'),
    'ten of each': (fine, fine, 10, 10, 'too few for clusters (7 backgrounds)'),
    'many objects': (fine, fine, 300, 12, 'too few for clusters ('),
    'many backgrounds': (fine, both, 12, 300, 'too ')}


def folder_of(top, objects, backgrounds):
    "Both piles as PNG files."
    for name, pictures in dict(objects=objects, backgrounds=backgrounds).items():
        (top/name).mkdir(parents=True)
        for i, a in enumerate(pictures):
            Image.fromarray(a).save(top/name/f'{i:03}.png')
    return top


def short(path, *words):
    "Settings of a training of the folder's defaults, a few steps long."
    cache = f'cache={path}/../cache'
    return compose_config(['experiment=folder', f'data.path={path}', 'data.size=32', *SHORT, cache, *words])


@pytest.mark.parametrize('kind, clean', [*((k, False) for k in KINDS), ('one gray', True), ('many objects', True)])
def test_defaults_train_and_say_so(tmp_path, kind, clean):
    of_objects, of_backgrounds, n, m, why = KINDS[kind]
    path = folder_of(tmp_path/'data', discs(of_objects(n, 1)), of_backgrounds(m, 3))
    said, run = [], tmp_path/'run'
    with nullcontext() if clean and kind == 'many objects' else dots(): # figures of one are enough
        metrics, _ = run_experiment(short(path, f'data.clean={clean}'), 'folder', run, say=said.append)
    line, = (s for s in said if s.startswith('the grounds are'))
    assert why in line and line.endswith(LINE)
    assert metrics['k'] == json.loads((run/'metrics.json').read_text())['k'] == 1
    about = json.loads((run/'model/model.json').read_text())['clusters']
    assert about['k'] == 1 and len(about['backgrounds']) == 1
    assert LINE in (run/'report.html').read_text() and LINE in (run/'model/README.md').read_text()
    assert '\n  k: 1\n' in (run/'config.yaml').read_text()
    assert evaluate_run(run)['k'] == 1


def test_python_does_as_the_command_line(tmp_path):
    words = dict(w.replace('.', '__').split('=') for w in SHORT)
    made = Segmenter.fit(discs(fine(40, 1)), fine(40, 3), out=tmp_path, data__size=32, **words)
    assert made.metrics['k'] == made.about['clusters']['k'] == 1


def interrupted(cfg, folder, at):
    "A run that the keyboard stops when it says `at`."
    def say(text):
        if text.startswith(at):
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_experiment(cfg, 'folder', folder, say=say)


@pytest.mark.parametrize('at, k', (('stage 1', 'null'), ('stage 2', '1')))
def test_a_run_that_goes_on_leaves_the_condition_out_too(tmp_path, at, k):
    path = folder_of(tmp_path/'data', discs(fine(40, 1)), fine(40, 3))
    interrupted(short(path), tmp_path/'run', at)
    assert f'\n  k: {k}\n' in (tmp_path/'run/config.yaml').read_text()
    said = []
    metrics, _ = resume_run(tmp_path/'run', say=said.append)
    assert metrics['k'] == 1 and any(s.endswith(LINE) for s in said)
    whole, _ = run_experiment(short(path), 'folder', tmp_path/'whole', say=said.append)
    assert metrics['settings'] == whole['settings']


def test_a_number_that_the_user_set_is_named_in_the_error(tmp_path):
    path = folder_of(tmp_path/'data', discs(fine(30, 1)), fine(30, 3))
    with pytest.raises(InputError, match='cluster.k=5: no background cluster can be a target .* Set cluster.k=1'):
        run_experiment(short(path, 'cluster.k=5'), 'folder', tmp_path/'run', say=[].append)


def test_a_number_that_the_user_set_is_kept_and_warned_of(tmp_path):
    path, said = folder_of(tmp_path/'data', discs(both(100, 1)), fine(100, 3)), []
    metrics, _ = run_experiment(short(path, 'cluster.k=2', 'cluster.least=1'), 'folder', tmp_path/'run',
                                say=said.append)
    assert metrics['k'] == 2 and any('warning: the clusters are unsure' in s for s in said)


def test_an_experiment_on_few_images_leaves_the_condition_out(tmp_path):
    cfg = compose_config(['experiment=demo', 'data.n_objects=30', 'data.n_backgrounds=30', 'trainer.bs=4', *SHORT,
                          f'cache={tmp_path}/cache'])
    said = []
    metrics, _ = run_experiment(cfg, 'demo', tmp_path/'run', say=said.append)
    assert metrics['k'] == 1 and any(s.endswith(LINE) for s in said)


def test_a_search_leaves_the_condition_out_too(tmp_path):
    pytest.importorskip('optuna')
    path = folder_of(tmp_path/'data', discs(fine(30, 1)), fine(30, 3))
    assert search_settings(short(path, 'hparams_search=optuna', 'hparams_search.n_trials=1'), tmp_path) == 0


def test_a_run_that_chose_says_whether_it_used_its_clusters(tmp_path):
    path, said = folder_of(tmp_path/'data', discs(both(600, 1)), both(600, 3)), []
    words = 'cluster.k=null', 'trainer.epochs=4', 'trainer.steps=4'
    metrics, _ = run_experiment(short(path, *words), 'folder', tmp_path/'run', say=said.append)
    about = json.loads((tmp_path/'run/model/model.json').read_text())
    chosen = json.loads((tmp_path/'run/condition.json').read_text())
    assert about['clusters']['used'] == chosen['used'] == (not chosen['unfit'])
    assert any('the condition on the background: ' in s for s in said)
    assert 0 < metrics['recovery'] <= 1 and 'recovery' in (tmp_path/'run/report.html').read_text()
