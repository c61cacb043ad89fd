"""Does a masker that has learned wrong borders come back by the divergence alone, with clusters and without?

    python scripts/make_spoiled.py --path MNIST --textures BRODATZ --seeds 0 1

A masker is taught with true masks that are two pixels too wide. Then it trains on divergence and backgrounds alone, as
in the study `alone` of make_studies.py. Writes nbs/results/studies/spoiled.json; the settings are those of that study.
"""
import argparse, json, time
from dataclasses import replace

import numpy as np, torch
from fastai.callback.core import Callback
from scipy.ndimage import binary_dilation

from make_studies import CASES, TOP, words_of
from bcd_fast.backgrounds.stage1 import run_stage1
from bcd_fast.core import keep_buffers, platform_text
from bcd_fast.data.datasets import load_data
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.scoring.scores import mask_scores
from bcd_fast.training.learner import predict_masks
from bcd_fast.training.stage2 import fit_stage2, stage2_learner

PREDICTION = ('With K=5 the masks come back to within .05 of what the study `alone` reaches from scratch, '
              'with K=1 they stay as they are or get worse.') # written before the first run
WIDE = 2 # pixels
FIRST = ['supervised=true', 'trainer.epochs=3'] # how the wrong masks are taught
THEN = ['trainer.epochs=10', 'callbacks.keep_best=false']


def widened(ds):
    "The data with training masks that are too wide; those of validation and test stay."
    masks, train = ds.objects.masks.copy(), ds.indices()['train']
    disc = np.ones((2*WIDE+1, 2*WIDE+1), bool)
    masks[train] = [binary_dilation(m[0], disc)[None] for m in masks[train]]
    return replace(ds, objects=replace(ds.objects, masks=masks))


class Curve(Callback):
    "IoU of some test images after every epoch."
    def __init__(self, test):
        self.test, self.rows = test, []
    def after_epoch(self):
        found = mask_scores(predict_masks(self.model, self.test.images), self.test.masks)
        self.rows.append(round(float(found['iou']), 4))


def run(k, seed, more, cache):
    "IoU before, and after each epoch."
    words = [*CASES['alone']['patches, 64 and 384, K=5'], f'cluster.k={k}', *more, f'cache={cache}', 'bar=false']
    first, then = (compose_config(words_of(words, seed, *extra)) for extra in (FIRST, THEN))
    ds = load_data(first.data)
    s1, _ = run_stage1(then, ds)
    test = ds.part('test')[0]
    taught = stage2_learner(first, widened(ds), s1)
    fit_stage2(first, taught)
    before = float(mask_scores(predict_masks(taught.model, test.images), test.masks)['iou'])
    curve = Curve(test)
    learn = stage2_learner(then, ds, s1, [curve])
    learn.model.load_state_dict(taught.model.state_dict())
    start = time.perf_counter()
    fit_stage2(then, learn)
    print(f'K={k} seed {seed}: {before:.3f}', curve.rows, flush=True)
    return dict(seed=seed, before=round(before, 4), iou=curve.rows[-1], curve=curve.rows,
                seconds=round(time.perf_counter()-start), platform=platform_text(), torch=torch.__version__)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--path', required=True, help='folder of the idx files')
    p.add_argument('--textures', required=True, help='folder of texture images')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    p.add_argument('--cache', default='runs/stage1')
    a = p.parse_args()
    keep_buffers()
    more, cases = [f'data.path={a.path}', f'data.textures={a.textures}'], {}
    for k in (5, 1):
        cases[f'K={k}'] = dict(runs=[run(k, seed, more, a.cache) for seed in a.seeds])
    about = dict(study='spoiled', question='Do masks that are too wide come back?', prediction=PREDICTION, cases=cases)
    (TOP/'nbs/results/studies/spoiled.json').write_text(json.dumps(about, indent=1)+'\n')


if __name__ == '__main__':
    main()
