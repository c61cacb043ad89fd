"A folder holds one run: used twice, by two processes, with other settings or data, damaged, or with other threads."
import json, random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from bcd_fast.core import Damaged, InputError
from bcd_fast.backgrounds.stage1 import load_stage1
from bcd_fast.experiments import runs
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.runs import FILES, FOLDERS, evaluate_run, held, resume_run, run_demo, run_experiment
from bcd_fast.training.checkpoints import CannotGoOn, Checkpoint, read_state

SHORT = ['trainer.epochs=3', 'trainer.steps=4', 'trainer.bs=4', 'trainer.paste=4', 'model.width=4', 'bar=false',
         'encoder.epochs=1', 'encoder.steps=10', 'cluster.least=1', 'data.size=32']
OF_SQUARES = 'encoder', 'cluster', 'data.size'
RECIPES = 'fast', 'whole'


def silent(text):
    "Nobody listens."


def picture(rng, with_disc):
    "(40,48) uint8 of one of two grounds, (40,48) bool."
    rows, columns = np.mgrid[:40, :48]
    disc = (rows-rng.integers(10, 30))**2+(columns-rng.integers(10, 38))**2 < 49
    ground = rng.standard_normal((40, 48)) if rng.random() < .5 else rng.standard_normal((5, 6)).repeat(8, 0).repeat(8, 1)
    return (90+20*ground+90*disc*with_disc).clip(0, 255).astype(np.uint8), disc


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_masks(data, masks):
    for i, m in enumerate(masks):
        save(data/f'masks/{i:03}.png', m.astype(np.uint8)*255)


def write_set(data, n=60):
    "A folder without masks -> the masks."
    rng, masks = np.random.default_rng(0), []
    for i in range(n):
        shown, disc = picture(rng, True)
        masks.append(disc)
        save(data/f'objects/{i:03}.png', shown)
        save(data/f'backgrounds/{i:03}.png', picture(rng, False)[0])
    return masks


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A folder without masks, and one with."
    top = tmp_path_factory.mktemp('data')
    masks = write_set(top/'plain')
    write_masks(top/'masked', write_set(top/'masked'))
    return SimpleNamespace(plain=top/'plain', masked=top/'masked', masks=masks, cache=top/'cache')


def settings(data, recipe, *words, folder='masked'):
    short = [w for w in SHORT if recipe == 'fast' or not w.startswith(OF_SQUARES)]
    where = [f'data.path={getattr(data, folder)}', f'cache={data.cache}']
    return compose_config(['experiment=folder', f'recipe={recipe}', *where, *short, *words])


def stop_after_epoch(cfg, folder, monkeypatch, name='folder', epochs=1):
    "A run that is stopped when the checkpoint of an epoch is written."
    whole = Checkpoint.after_epoch
    def stopped(self):
        whole(self)
        if self.epoch+1 == epochs:
            raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, 'after_epoch', stopped)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(cfg, name, folder, silent)
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def weights_of(folder):
    return (folder/'model/model.safetensors').read_bytes()


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_used_folder_is_left_as_it_is(data, tmp_path, monkeypatch, recipe):
    cfg, run = settings(data, recipe), tmp_path/'run'
    stop_after_epoch(cfg, run, monkeypatch)
    for state, said in (('interrupted', '--resume'), ('finished', 'stays as it is')):
        before = contents(run)
        with pytest.raises(CannotGoOn, match=said):
            run_experiment(cfg, 'folder', run, silent)
        assert contents(run) == before
        if state == 'interrupted':
            resume_run(run, silent)
    assert {p.name for p in run.iterdir()} <= {*FILES, *FOLDERS, '.lock'}
    (tmp_path/'mine/model').mkdir(parents=True)
    with pytest.raises(CannotGoOn, match='holds model, which a run would overwrite'):
        run_experiment(cfg, 'folder', tmp_path/'mine', silent)


@pytest.mark.parametrize('recipe', RECIPES)
def test_one_process_in_a_folder(data, tmp_path, monkeypatch, recipe):
    cfg, run = settings(data, recipe), tmp_path/'run'
    with held(tmp_path):
        with pytest.raises(CannotGoOn, match='in use by another process'):
            run_experiment(cfg, 'folder', tmp_path, silent)
    stop_after_epoch(cfg, run, monkeypatch)
    (run/'.history.csv.1234567').touch() # what a dead run has left
    with held(run):
        with pytest.raises(CannotGoOn, match='in use by another process'):
            resume_run(run, silent)
    assert not (run/'.history.csv.1234567').exists()
    resume_run(run, silent)
    epochs = [line.split(',')[0] for line in (run/'history.csv').read_text().splitlines()]
    assert epochs == ['epoch', '1', '2', '3']


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_checkpoint_of_other_settings_or_damaged(data, tmp_path, monkeypatch, call, recipe):
    cfg, run = settings(data, recipe), tmp_path/'run'
    stop_after_epoch(cfg, run, monkeypatch)
    typed, kept = (run/'config.yaml').read_text(), (run/'checkpoint.safetensors').read_bytes()
    about = read_state(run/'checkpoint.safetensors')['about']
    assert about['threads'] == torch.get_num_threads() and about['torch'] == torch.__version__
    (run/'config.yaml').write_text(typed.replace('wd: 0.01', 'wd: 0.02'))
    damaged = bytearray(kept)
    damaged[-9] ^= 8
    for change, said in ((None, 'other settings'), (damaged, 'is damaged')):
        if change:
            (run/'config.yaml').write_text(typed)
            (run/'checkpoint.safetensors').write_bytes(change)
        status, _, err = call('bcd_train', '--resume', run)
        assert status == 2 and said in err and '--resume' not in err and err.count('\n') == 1, err
    (run/'checkpoint.safetensors').unlink() # as the sentence says
    resume_run(run, silent)
    run_experiment(cfg, 'folder', tmp_path/'whole', silent)
    assert weights_of(run) == weights_of(tmp_path/'whole')


@pytest.mark.parametrize('text, said', (('a: [', 'line'), ('nope: 1', 'nope'), ('seed: ${nope}', 'nope')))
def test_settings_that_are_none(tmp_path, call, text, said):
    (tmp_path/'config.yaml').write_text(f'# experiment=demo\n{text}\n')
    status, _, err = call('bcd_train', '--resume', tmp_path)
    assert status == 2 and 'config.yaml does not hold' in err and said in err and err.count('\n') == 1, err


@pytest.mark.parametrize('recipe', RECIPES)
def test_masks_that_changed(tmp_path, monkeypatch, recipe):
    data = SimpleNamespace(masked=tmp_path/'data', cache=tmp_path/'cache')
    masks = write_set(data.masked)
    write_masks(data.masked, masks)
    bound = stop_after_epoch(settings(data, recipe, 'supervised=true'), tmp_path/'bound', monkeypatch)
    method = stop_after_epoch(settings(data, recipe), tmp_path/'method', monkeypatch)
    write_masks(data.masked, [~m for m in masks])
    with pytest.raises(CannotGoOn, match='true masks have changed'):
        resume_run(bound, silent)
    assert resume_run(method, silent)[0]['iou'] is not None # it does not learn from them
    write_masks(data.masked, masks)
    resume_run(bound, silent)


@pytest.mark.parametrize('recipe', RECIPES)
def test_masks_that_come_later(tmp_path, monkeypatch, recipe):
    data = SimpleNamespace(masked=tmp_path/'data', cache=tmp_path/'cache')
    masks = write_set(data.masked)
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    metrics, _ = run_experiment(settings(data, recipe), 'folder', whole, silent)
    assert metrics['iou'] is None
    stop_after_epoch(settings(data, recipe), cut, monkeypatch)
    write_masks(data.masked, masks)
    assert resume_run(cut, silent)[0]['iou'] is None
    assert weights_of(cut) == weights_of(whole)
    assert evaluate_run(whole)['iou'] is not None
    save(data.masked/'objects/000.png', picture(np.random.default_rng(9), True)[0])
    with pytest.raises(InputError, match='have changed'):
        evaluate_run(whole)


def test_a_training_that_chooses_its_clusters_goes_on_choosing(tmp_path, monkeypatch):
    "Nobody has set their number: the run knows so after an interruption, too."
    cfg = compose_config(['experiment=demo', 'data.n_objects=300', 'data.n_backgrounds=300', 'cluster.k=null',
                          f'cache={tmp_path}/cache', 'encoder.epochs=1', 'encoder.steps=30', *SHORT[:7], 'data.size=32'])
    cfg.cluster.k = None
    monkeypatch.setattr(runs, 'settled', lambda cfg, ds, s1, set_by: (cfg, s1)) # however unsure they are
    run_experiment(cfg, 'demo', tmp_path/'whole', silent)
    stop_after_epoch(cfg, tmp_path/'cut', monkeypatch, 'demo')
    assert 'choice' in json.dumps(list(read_state(tmp_path/'cut/checkpoint.safetensors')['callbacks']))
    resume_run(tmp_path/'cut', silent)
    assert weights_of(tmp_path/'cut') == weights_of(tmp_path/'whole')


@pytest.mark.parametrize('recipe', RECIPES)
def test_other_threads(data, tmp_path, monkeypatch, recipe):
    cfg, threads, said = settings(data, recipe), torch.get_num_threads(), []
    run_experiment(cfg, 'folder', tmp_path/'whole', silent)
    run = stop_after_epoch(cfg, tmp_path/'run', monkeypatch)
    try:
        torch.set_num_threads(threads+1)
        resume_run(run, said.append)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    assert said[0].startswith(f'computing with {threads} threads, as before')
    assert weights_of(run) == weights_of(tmp_path/'whole')


def flipped(data, rng):
    "The bytes with one bit changed."
    data, bit = bytearray(data), rng.randrange(8*len(data))
    data[bit//8] ^= 1 << bit % 8
    return data


def test_every_flipped_bit_is_noticed(data, tmp_path, monkeypatch):
    run, rng = stop_after_epoch(settings(data, 'fast'), tmp_path/'run', monkeypatch), random.Random(0)
    readers = {'checkpoint.safetensors': read_state, 'pictures.json': lambda path: runs.read_sealed_json(path)}
    files = ['stage1/encoder.safetensors', 'stage1/assigned.safetensors', 'stage1/clusters.safetensors',
             'stage1/stage1.json', *readers]
    for name in files:
        path = run/name
        whole, read = path.read_bytes(), readers.get(name, lambda path: load_stage1(path.parent))
        for _ in range(50):
            path.write_bytes(flipped(whole, rng))
            with pytest.raises(Damaged):
                read(path)
        path.write_bytes(whole)
        read(path)
    (run/'stage1/stage1.json').write_bytes(flipped(whole, rng))
    with pytest.raises(CannotGoOn, match='stage1.json .* Run the experiment anew'):
        resume_run(run, silent)


def test_a_cache_that_cannot_be_written_is_done_without(data, tmp_path):
    (tmp_path/'file').touch()
    cfg = settings(data, 'fast', f'cache={tmp_path/"file"}/cache', 'stage=1')
    with pytest.warns(UserWarning, match='stage 1 is not kept for other runs: .*cannot be made'):
        run_experiment(cfg, 'folder', tmp_path/'run', silent)
    assert load_stage1(tmp_path/'run/stage1').clusters.n_clusters == cfg.cluster.k or cfg.cluster.k is None


def test_a_demo_replaces_a_demo(tmp_path, monkeypatch):
    folder, said = tmp_path/'demo', []
    def demo(seed, *words):
        cfg = compose_config(['experiment=demo', f'seed={seed}', 'data.n_objects=240', 'data.n_backgrounds=240',
                              'cluster.k=2', *SHORT, *words])
        cfg.out, cfg.cache = str(folder), f'{folder}/cache'
        return cfg
    run_demo(demo(0), folder, said.append)
    (folder/'model/notes.txt').write_text('of the user')
    assert run_demo(demo(1), folder, said.append)[0]['seed'] == 1
    assert any('holds an earlier demo, which is replaced' in s for s in said)
    assert (folder/'model/notes.txt').is_file()
    said.clear()
    stop = partial(stop_after_epoch, folder=tmp_path/'a/demo', monkeypatch=monkeypatch, name='demo')
    folder = tmp_path/'a/demo'
    stop(demo(0))
    run_demo(demo(0), folder, said.append)
    assert any('1 of them done before' in s for s in said)
    with pytest.raises(CannotGoOn, match='stays as it is'):
        run_demo(demo(0), stop_and_finish(tmp_path/'train', monkeypatch), said.append)


def stop_and_finish(folder, monkeypatch):
    "A run of `bcd_train experiment=demo`, finished."
    cfg = compose_config(['experiment=demo', 'data.n_objects=240', 'data.n_backgrounds=240', 'cluster.k=2', *SHORT,
                          f'cache={folder}/../cache'])
    run_experiment(cfg, 'demo', folder, silent)
    return folder
