"""Processes that train together, and how they end."""
import atexit, os
import numpy as np
from bcd_fast.backgrounds.stage1 import Clustered
from bcd_fast.data.datasets import load_dataset
from bcd_fast.masker.maskers import ModelConfig
from bcd_fast.training.batches import Batches
from bcd_fast.training.learner import bcd_learner
from bcd_fast.training.processes import Schedule, fit_processes


def aborts_at_exit(*args, **kwargs):
    "A learner in a process that would abort while Python shuts down, as threads of torch now and then do."
    atexit.register(os.abort)
    return bcd_learner(*args, **kwargs)


def test_finished_processes_skip_the_shutdown_of_python():
    ds = load_dataset(n_objects=60, n_backgrounds=60)
    parts = [Clustered(obj, bg, obj.labels, bg.labels) for obj, bg in map(ds.part, ('train', 'valid'))]
    small = dict(masker=ModelConfig(width=4), batches=Batches(bs=4, steps=1, least=1))
    fitted = fit_processes(aborts_at_exit, 2, Schedule(1, .1, one_cycle=False), parts, small)
    assert np.isfinite(fitted.values).all()
    assert fitted.disagreement == 0
