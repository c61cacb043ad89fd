"""Processes that train together, and how they end."""
import atexit, os, signal, socket, subprocess, sys, time
import numpy as np
import pandas as pd
import pytest
import torch.multiprocessing as mp
from fastai.callback.core import Callback
from bcd_fast.core import InputError
from bcd_fast.backgrounds.stage1 import Clustered
from bcd_fast.data.datasets import load_dataset
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.runs import resume_run, write_settings
from bcd_fast.masker.maskers import ModelConfig
from bcd_fast.training.batches import Batches
from bcd_fast.training.learner import bcd_learner
from bcd_fast.training.checkpoints import read_state
from bcd_fast.training.processes import NEEDED, Schedule, fit_processes, follow_parent
from bcd_fast.train import main
from conftest import posix

pytestmark = posix


KILLS = int(os.environ.get('BCD_KILLS', 1)) # more by hand, as in test_resume.py


class AtStep(Callback):
    "Something happens in process `rank` after a training step."
    order = 80 # after the checkpoint

    def __init__(self, rank, step, do):
        self.rank, self.step, self.do = rank, step, do

    def after_batch(self):
        if self.training and self.train_iter == self.step and os.environ['RANK'] == str(self.rank):
            os.kill(*(self.do or (os.getpid(), signal.SIGKILL)))
            time.sleep(1) # until it has been heard


def learner_with(rank, step, do, *args, **kwargs):
    """A learner to which something happens, in a process that would abort while Python shuts down, as threads of torch
    now and then do."""
    atexit.register(os.abort)
    return bcd_learner(*args, **kwargs, cbs=[AtStep(rank, step, do)] if step else [])


@pytest.fixture(scope='module')
def parts():
    ds = load_dataset(n_objects=60, n_backgrounds=60)
    return [Clustered(obj, bg, obj.labels, bg.labels) for obj, bg in map(ds.part, ('train', 'valid'))]


def small(steps):
    return dict(masker=ModelConfig(width=4), batches=Batches(bs=4, steps=steps, least=1))


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_weights(parts, tmp_path):
    "One of two is killed in the second epoch. With BCD_KILLS=2, Ctrl-C stops the rest within that epoch."
    def fit(folder, *what, resume=False):
        how = Schedule(2, .01, folder=str(folder), about={}, resume=resume, threads=1)
        return fit_processes(learner_with, 2, how, (*what, *parts), small(3))
    folder, whole = tmp_path/'run', tmp_path/'whole'
    for f in (folder, whole):
        f.mkdir()
    wanted = fit(whole, 0, 0, None)
    assert np.isfinite(wanted.values).all() and wanted.disagreement == 0
    with pytest.raises(InputError, match='process 2 of 2 was ended by SIGKILL'):
        fit(folder, 1, 5, None)
    assert not mp.active_children()
    assert read_state(folder/'checkpoint.safetensors')['epoch'] == 1
    if KILLS > 1:
        with pytest.raises(KeyboardInterrupt):
            fit(folder, 0, 4, (os.getpid(), signal.SIGINT), resume=True)
    found = fit(folder, 0, 0, None, resume=True)
    assert found.values == wanted.values
    assert all((found.weights[k] == w).all() for k, w in wanted.weights.items())


def lives_on(rank, path):
    "A process that notes that it has started, and waits."
    follow_parent()
    (path/f'{rank}.{os.getpid()}').touch()
    time.sleep(60)


def dies(path):
    "A process that starts two and is killed."
    mp.spawn(lives_on, (path,), nprocs=2, join=False)
    while len(list(path.iterdir())) < 2:
        time.sleep(.02)
    os.kill(os.getpid(), signal.SIGKILL)


def runs(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return b'Z' not in open(f'/proc/{number}/stat', 'rb').read().rsplit(b')', 1)[1]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='looks for processes in /proc')
def test_processes_end_with_the_one_that_started_them(tmp_path):
    parent = mp.get_context('spawn').Process(target=dies, args=(tmp_path,))
    parent.start()
    parent.join()
    numbers = [int(p.suffix[1:]) for p in tmp_path.iterdir()]
    end = time.monotonic()+10
    while any(map(runs, numbers)) and time.monotonic() < end:
        time.sleep(.05)
    assert len(numbers) == 2 and not any(map(runs, numbers))


SQUARES = ['experiment=demo', 'data.n_objects=300', 'data.n_backgrounds=300', 'data.size=32', 'encoder.epochs=1',
           'encoder.steps=20', 'cluster.k=3', 'trainer.epochs=2', 'trainer.steps=4', 'trainer.bs=8', 'trainer.paste=4',
           'trainer.accelerator=cpu', 'bar=false']
PLAIN = {k: v for k, v in os.environ.items() if k not in NEEDED}


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start(folder, words, env=(), launcher=()):
    "bcd_train in a process of its own, with its cache beside the run."
    how = ['-m', 'torch.distributed.run', *launcher] if launcher else []
    return subprocess.Popen([sys.executable, *how, '-m', 'bcd_fast.train', *words], cwd=folder, text=True,
                            env=PLAIN | dict(env, OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rank_of_two(rank, folder, words, port):
    env = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    return start(folder, words, {k: str(v) for k, v in env.items()})


def ended(processes, seconds=240):
    "Exit status and standard error of each."
    try:
        said = [p.communicate(timeout=seconds)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [p.returncode for p in processes], said


def history(folder):
    return pd.read_csv(folder/'history.csv').drop(columns='seconds')


def halves(folder):
    return [p.name for p in folder.rglob('.*') if p.name != '.lock']


@pytest.mark.parametrize('env, words, said', [
    (dict(WORLD_SIZE='2'), [], 'error: WORLD_SIZE is set and RANK is not'),
    (dict(RANK='1'), [], 'error: RANK is set and LOCAL_RANK is not'),
    (dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='1'), ['trainer.processes=2'],
     'error: trainer.processes=2 and torchrun has started 1')])
def test_a_wrong_environment_is_refused(env, words, said, tmp_path, monkeypatch, capsys):
    for name in NEEDED:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    try:
        status = main([*SQUARES, *words, f'hydra.run.dir={tmp_path}/run', f'cache={tmp_path}/cache'])
    except SystemExit as e: # of Hydra
        status = e.code
    assert status == 2 and capsys.readouterr().err.startswith(said)
    assert not (tmp_path/'run/config.yaml').exists()


def test_another_number_of_processes_goes_on_with_no_run(tmp_path, monkeypatch, capsys):
    "It is refused before the data are read: here there are none."
    cfg = compose_config(['experiment=folder', 'data.path=nowhere', 'recipe=whole'])
    (tmp_path/'run').mkdir()
    write_settings(cfg, 'folder', tmp_path/'run')
    env = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT='1')
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match='begun with trainer.processes=1 and torchrun has started 2: start 1'):
        resume_run(tmp_path/'run', print)
    for name in env:
        monkeypatch.delenv(name)
    with pytest.raises(InputError, match='nowhere'):
        resume_run(tmp_path/'run', print)


@pytest.mark.slow
def test_two_machines_train_as_two_processes_of_one_do(tmp_path):
    "Two torchruns on this machine, with a disk each, stand for two machines; the folder is named by the time."
    wanted = start(tmp_path, [*SQUARES, 'trainer.processes=2', 'hydra.run.dir=one'])
    assert ended([wanted])[0] == [0]
    meet = ['--nnodes', '2', '--nproc-per-node', '1', '--rdzv-backend', 'c10d', '--rdzv-id', 'two',
            '--rdzv-endpoint', f'localhost:{free_port()}']
    places = [tmp_path/'here', tmp_path/'there']
    for p in places:
        p.mkdir()
    two = [start(p, SQUARES, launcher=meet) for p in places]
    assert ended(two)[0] == [0, 0]
    run, = tmp_path.glob('*/runs/demo/*')
    assert np.allclose(history(run), history(tmp_path/'one'), rtol=0, atol=1e-6, equal_nan=True)
    assert sum(p.is_file() for place in places for p in place.rglob('model.safetensors')) == 1


@pytest.mark.slow
@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_of_torchrun_ends_the_others(killed, tmp_path):
    "With one sentence, nothing half-written, and a checkpoint from which both go on to the same losses."
    words = [*SQUARES, 'trainer.epochs=30', 'trainer.timeout=20', 'hydra.run.dir=run']
    port, run = free_port(), tmp_path/'run'
    both = [rank_of_two(r, tmp_path, words, port) for r in (0, 1)]
    end = time.monotonic()+200
    while not (run/'checkpoint.safetensors').is_file() and time.monotonic() < end:
        time.sleep(.01)
    both[killed].kill()
    status, said = ended(both, 60)
    left = 1-killed
    assert status[killed] == -signal.SIGKILL and status[left] == 2
    assert said[left].startswith(f'error: process {left+1} of 2 waits in vain for the others')
    assert len(said[left].splitlines()) == 1
    assert halves(run) == [] or killed == 0 # a process that is killed may leave a half, which is swept
    again = [rank_of_two(r, tmp_path, ['--resume', 'run'], port) for r in (0, 1)]
    assert ended(again)[0] == [0, 0] and halves(run) == []
    assert len(history(run)) == 30


@pytest.mark.slow
def test_a_signal_to_one_process_of_torchrun_stops_all(tmp_path):
    words = [*SQUARES, 'trainer.epochs=300', 'hydra.run.dir=run']
    port = free_port()
    both = [rank_of_two(r, tmp_path, words, port) for r in (0, 1)]
    end = time.monotonic()+200
    while not (tmp_path/'run/checkpoint.safetensors').is_file() and time.monotonic() < end:
        time.sleep(.01)
    both[0].terminate()
    status, said = ended(both, 60)
    assert status == [143, 143]
    assert said[0] == f'stopped by SIGTERM. Go on with: bcd_train --resume {tmp_path}/run\n' and said[1] == ''
    assert halves(tmp_path/'run') == []
