"""Processes that train together, and how they end."""
import atexit, os, signal, time
import numpy as np
import pytest
import torch.multiprocessing as mp
from fastai.callback.core import Callback
from bcd_fast.core import InputError
from bcd_fast.backgrounds.stage1 import Clustered
from bcd_fast.data.datasets import load_dataset
from bcd_fast.masker.maskers import ModelConfig
from bcd_fast.training.batches import Batches
from bcd_fast.training.learner import bcd_learner
from bcd_fast.training.checkpoints import read_state
from bcd_fast.training.processes import Schedule, fit_processes, follow_parent


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
