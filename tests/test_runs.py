"A folder holds one run: used twice, by two processes, with other settings or data, damaged, or with other threads."
import random, shlex, shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from bcd_fast.core import Damaged, InputError, read_sealed_json
from bcd_fast.backgrounds.stage1 import load_stage1
from bcd_fast.experiments import runs
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.runs import FILES, FOLDERS, evaluate_run, held, resume_run, run_demo, run_experiment
from bcd_fast.training.checkpoints import CannotGoOn, Checkpoint, read_state
from conftest import posix

SHORT = ['trainer.epochs=2', 'trainer.steps=4', 'trainer.bs=4', 'trainer.paste=4', 'model.width=4', 'bar=false',
         'encoder.epochs=1', 'encoder.steps=10', 'cluster.k=2', 'cluster.least=1', 'data.size=32']
OF_SQUARES = 'encoder', 'cluster', 'data.size'
RECIPES = 'fast', 'whole'


def silent(text):
    "Nobody listens."


def picture(rng, with_disc):
    "(40,48) uint8 of one of two grounds, (40,48) bool."
    rows, columns = np.mgrid[:40, :48]
    disc = (rows-rng.integers(10, 30))**2+(columns-rng.integers(10, 38))**2 < 49
    fine, coarse = rng.standard_normal((40, 48)), rng.standard_normal((5, 6)).repeat(8, 0).repeat(8, 1)
    ground = fine if rng.random() < .5 else coarse
    return (90+20*ground+90*disc*with_disc).clip(0, 255).astype(np.uint8), disc


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_masks(data, masks):
    for i, m in enumerate(masks):
        save(data/f'masks/{i:03}.png', m.astype(np.uint8)*255)


def write_set(data, n=30):
    "A folder without masks -> the masks."
    rng, masks = np.random.default_rng(0), []
    for i in range(n):
        shown, disc = picture(rng, True)
        masks.append(disc)
        save(data/f'objects/{i:03}.png', shown)
        save(data/f'backgrounds/{i:03}.png', picture(rng, False)[0])
    return masks


pytestmark = pytest.mark.usefixtures('drawn_quickly')


def settings(data, recipe, *words):
    short = [w for w in SHORT if recipe == 'fast' or not w.startswith(OF_SQUARES)]
    where = [f'data.path={data}', f'cache={data.parent/"cache"}']
    return compose_config(['experiment=folder', f'recipe={recipe}', *where, *short, *words])


def stop_after_epoch(cfg, folder, name='folder'):
    "A run that is stopped when the checkpoint of its first epoch is written."
    whole = Checkpoint.after_epoch
    def stopped(self):
        whole(self)
        raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Checkpoint, 'after_epoch', stopped)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(cfg, name, folder, silent)
    return folder


@pytest.fixture(scope='module', params=RECIPES)
def made(request, drawn_quickly, tmp_path_factory):
    "A run of each recipe: its settings, its folder, and one of the same run that was stopped."
    top = tmp_path_factory.mktemp(request.param)
    write_masks(top/'data', write_set(top/'data'))
    cfg = settings(top/'data', request.param)
    run_experiment(cfg, 'folder', top/'whole', silent)
    return SimpleNamespace(cfg=cfg, recipe=request.param, whole=top/'whole', cut=stop_after_epoch(cfg, top/'cut'))


@pytest.fixture
def cut(made, tmp_path):
    "The run that was stopped, to go on with."
    return shutil.copytree(made.cut, tmp_path/'cut')


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def weights_of(folder):
    return (folder/'model/model.safetensors').read_bytes()


def test_a_used_folder_is_left_as_it_is(made, cut, tmp_path):
    for run, said in ((cut, '--resume'), (made.whole, 'stays as it is')):
        before = contents(run)
        with pytest.raises(CannotGoOn, match=said):
            run_experiment(made.cfg, 'folder', run, silent)
        assert contents(run) == before
        assert {p.name for p in run.iterdir()} <= {*FILES, *FOLDERS, '.lock'}
    (tmp_path/'mine/model').mkdir(parents=True)
    with pytest.raises(CannotGoOn, match='holds model, which a run would overwrite'):
        run_experiment(made.cfg, 'folder', tmp_path/'mine', silent)


def test_one_process_in_a_folder(made, cut, tmp_path):
    with held(tmp_path), pytest.raises(CannotGoOn, match='in use by another process'):
        run_experiment(made.cfg, 'folder', tmp_path, silent)
    (cut/f'.history.csv.{2**31}').touch() # what a dead run has left
    with held(cut), pytest.raises(CannotGoOn, match='in use by another process'):
        resume_run(cut, silent)
    assert not (cut/f'.history.csv.{2**31}').exists()


def test_a_run_goes_on_with_other_threads(made, cut):
    threads, said = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads+1)
        resume_run(cut, said.append)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    assert said[0].startswith(f'computing with {threads} threads, as before')
    assert weights_of(cut) == weights_of(made.whole)
    epochs = [line.split(',')[0] for line in (cut/'history.csv').read_text().splitlines()]
    assert epochs == ['epoch', '1', '2']


def test_a_checkpoint_of_other_settings_or_damaged(made, cut, call):
    typed, kept = (cut/'config.yaml').read_text(), (cut/'checkpoint.safetensors').read_bytes()
    about = read_state(cut/'checkpoint.safetensors')['about']
    assert about['threads'] == torch.get_num_threads() and about['torch'] == torch.__version__
    damaged = bytearray(kept)
    damaged[-9] ^= 8
    for text, data, said in ((typed.replace('wd: 0.01', 'wd: 0.02'), kept, 'other settings'),
                             (typed, damaged, 'is damaged')):
        (cut/'config.yaml').write_text(text)
        (cut/'checkpoint.safetensors').write_bytes(data)
        status, _, err = call('bcd_train', '--resume', cut)
        assert status == 2 and said in err and '--resume' not in err and err.count('\n') == 1, err
    (cut/'checkpoint.safetensors').unlink() # as the sentence says
    resume_run(cut, silent)
    assert weights_of(cut) == weights_of(made.whole)


@pytest.mark.parametrize('text, said', (('a: [', 'line'), ('nope: 1', 'nope'), ('seed: ${nope}', 'nope')))
def test_settings_that_are_none(tmp_path, call, text, said):
    (tmp_path/'config.yaml').write_text(f'# experiment=demo\n{text}\n')
    status, _, err = call('bcd_train', '--resume', tmp_path)
    assert status == 2 and 'config.yaml does not hold' in err and said in err and err.count('\n') == 1, err


@pytest.mark.parametrize('recipe', RECIPES)
def test_masks_that_changed(tmp_path, recipe):
    data = tmp_path/'data'
    masks = write_set(data)
    write_masks(data, masks)
    bound = stop_after_epoch(settings(data, recipe, 'supervised=true'), tmp_path/'bound')
    method = stop_after_epoch(settings(data, recipe), tmp_path/'method')
    write_masks(data, [~m for m in masks])
    with pytest.raises(CannotGoOn, match='true masks have changed'):
        resume_run(bound, silent)
    assert resume_run(method, silent)[0]['iou'] is not None # it does not learn from them
    write_masks(data, masks)
    resume_run(bound, silent)


@pytest.mark.parametrize('recipe', RECIPES)
def test_masks_that_come_later(tmp_path, recipe):
    data, whole = tmp_path/'data', tmp_path/'whole'
    masks = write_set(data)
    run = stop_after_epoch(settings(data, recipe), tmp_path/'cut')
    shutil.copytree(run, whole)
    resume_run(whole, silent)
    write_masks(data, masks)
    assert resume_run(run, silent)[0]['iou'] is None # it began without
    assert weights_of(run) == weights_of(whole)
    assert evaluate_run(run)['iou'] is not None
    save(data/'objects/000.png', picture(np.random.default_rng(9), True)[0])
    with pytest.raises(InputError, match='have changed'):
        evaluate_run(run)


def test_a_training_that_chooses_its_clusters_goes_on_choosing(tmp_path, monkeypatch):
    "Nobody has set their number: the run knows so after an interruption, too."
    monkeypatch.setattr(runs, 'settled', lambda cfg, ds, s1, set_by: (cfg, s1)) # however unsure they are
    write_set(tmp_path/'data', 60)
    cfg = settings(tmp_path/'data', 'fast')
    cfg.cluster.k = None
    run = stop_after_epoch(cfg, tmp_path/'cut')
    assert 'cluster_choice' in read_state(run/'checkpoint.safetensors')['callbacks']
    learned = []
    monkeypatch.setattr(runs, 'train_masker', lambda *args: learned.append(args))
    with pytest.raises(TypeError): # nothing was trained
        resume_run(run, silent)
    assert len(learned[0][-1]) == 1 # a `ClusterChoice` again


def flipped(data, rng):
    "The bytes with one bit changed."
    data, bit = bytearray(data), rng.randrange(8*len(data))
    data[bit//8] ^= 1 << bit % 8
    return data


@pytest.mark.parametrize('name', ('stage1/encoder.safetensors', 'stage1/assigned.safetensors', 'stage1/stage1.json',
                                  'stage1/clusters.safetensors', 'checkpoint.safetensors', 'pictures.json'))
def test_every_flipped_bit_is_noticed(made, cut, name):
    if not (cut/name).is_file():
        pytest.skip('no stage 1')
    read = {'checkpoint.safetensors': read_state, 'pictures.json': read_sealed_json}.get(name)
    read, path, rng = read or (lambda path: load_stage1(path.parent)), cut/name, random.Random(0)
    whole = path.read_bytes()
    for _ in range(60):
        path.write_bytes(flipped(whole, rng))
        with pytest.raises(Damaged):
            read(path)
    with pytest.raises(CannotGoOn, match='is damaged|has no checksum'):
        resume_run(cut, silent)
    path.write_bytes(whole)
    read(path)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    write_set(tmp_path/'data')
    (tmp_path/'cache').touch() # no folder
    cfg = settings(tmp_path/'data', 'fast', 'stage=1')
    with pytest.warns(UserWarning, match='stage 1 is not kept for other runs: .*cannot be made'):
        run_experiment(cfg, 'folder', tmp_path/'run', silent)
    assert load_stage1(tmp_path/'run/stage1').clusters.n_clusters == 2


def demo(folder, seed):
    "Settings as `bcd_demo` makes them, a few steps long."
    few = ['data.n_objects=100', 'data.n_backgrounds=100']
    return compose_config(['experiment=demo', f'seed={seed}', *few, *SHORT, f'out={folder}', f'cache={folder}/cache'])


def test_a_demo_replaces_a_demo(tmp_path):
    folder, said = tmp_path/'demo', []
    stop_after_epoch(demo(folder, 0), folder, 'demo')
    run_demo(demo(folder, 0), folder, said.append)
    assert any('1 of them done before' in s for s in said) # it went on
    (folder/'model/notes.txt').write_text('of the user')
    assert run_demo(demo(folder, 1), folder, said.append)[0]['seed'] == 1
    assert any('holds an earlier demo, which is replaced' in s for s in said)
    assert (folder/'model/notes.txt').is_file()
    other = folder.rename(tmp_path/'other') # as if bcd_train had made it
    with pytest.raises(CannotGoOn, match='stays as it is'):
        run_demo(demo(other, 1), other, said.append)


@posix
def test_no_results_among_the_pictures(made, tmp_path):
    data = shutil.copytree(made.whole.parent/'data', tmp_path/'data')
    (tmp_path/'link').symlink_to(data/'objects')
    before = contents(data)
    cfg = settings(data, made.recipe)
    for folder in (data/'objects', data/'backgrounds/run', tmp_path/'link/run'):
        with pytest.raises(CannotGoOn, match='lies among the pictures'):
            run_experiment(cfg, 'folder', folder, silent)
    assert contents(data) == before and not (data/'backgrounds/run').exists()


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_no_memory(made, tmp_path, monkeypatch, call, error):
    def fails(*args, **kwargs):
        raise error
    for what in ('load_data', 'load_bags'):
        monkeypatch.setattr(runs, what, fails)
    status, _, err = call('bcd_train', 'data=folder', f'recipe={made.recipe}', f'data.path={made.whole.parent/"data"}')
    assert status == 2 and err.startswith('error: this machine has not enough memory') and err.count('\n') == 1, err


def test_the_command_that_is_advised_can_be_typed(made, tmp_path):
    run = shutil.copytree(made.cut, tmp_path/"it's $HOME (1)")
    with pytest.raises(CannotGoOn) as raised:
        run_experiment(made.cfg, 'folder', run, silent)
    words = shlex.split(str(raised.value).partition(' by ')[2].partition(', or ')[0])
    assert words == ['bcd_train', '--resume', str(run)]
