"""Try ideas that are not part of the package, and write nbs/results/studies/ideas.json for the studies notebook.

    python scripts/make_ideas.py --seeds 5                          # every idea: half an hour on one core
    python scripts/make_ideas.py "as it is" orthogonal --seeds 5 6  # those that looked good, on another seed
    python scripts/make_ideas.py --share 1 2                        # the first of two halves, to run side by side
    python scripts/make_ideas.py                                    # then without, to write the file

The file holds all runs that are there. Each idea changes one thing of a short training on digits. It is judged on
held-out images by what reads no mask: the divergence of counterfactuals from targets with random filters, with whitened
filters, and the Fréchet distance. The IoU stands beside for the record. An idea that wins belongs into a notebook; the
others stay here.
"""
import argparse, copy, json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from fastai.callback.core import Callback

from bcd_fast.training import losses
from bcd_fast.core import keep_buffers
from bcd_fast.data.images import to_unit
from bcd_fast.data.datasets import load_data
from bcd_fast.backgrounds.stage1 import run_stage1
from bcd_fast.backgrounds.encoders import describe, local_descriptors
from bcd_fast.divergences.patches import PatchEBSW, random_filters
from bcd_fast.divergences.representations import make_divergence
from bcd_fast.masker.compositing import composite
from bcd_fast.training.learner import predict_masks
from bcd_fast.training.stage2 import fit_stage2, stage2_learner
from bcd_fast.scoring.scores import mask_scores
from bcd_fast.scoring.frechet import counterfactual_frechet
from bcd_fast.experiments.catalogue import compose_config

TOP = Path(__file__).resolve().parent.parent
BASE = ['experiment=synthetic_segmentation', 'trainer.epochs=4', 'bar=false']
ABOUT = dict(study='ideas', question='Which ideas help, by criteria that read no mask?',
             command='python scripts/make_ideas.py')
SHARE = 'make this part of the runs only and write nothing'


def normal(f): # (n,C,k,k)
    "Filters of unit norm."
    return f/f.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class Orthogonal(PatchEBSW):
    "Filters at right angles."
    def filters(self, t):
        channels = t.shape[1]
        columns, _ = torch.linalg.qr(torch.randn(channels*self.patch**2, self.n_filters))
        return columns.T.reshape(-1, channels, self.patch, self.patch)


class ZeroMean(PatchEBSW):
    "Filters that do not see brightness."
    def filters(self, t):
        f = random_filters(self.n_filters, t.shape[1], self.patch, t)
        return normal(f-f.mean((1, 2, 3), keepdim=True))


class Ascent(PatchEBSW):
    "Filters after some steps towards a larger distance, as in max-sliced Wasserstein."
    def distances(self, x, t, s, filters=None):
        f = super().filters(t).requires_grad_()
        with torch.enable_grad():
            for _ in range(2):
                far = super().distances(x.detach(), t, s, normal(f)).sum()
                g, = torch.autograd.grad(far, f)
                f = (f+.3*normal(g)).detach().requires_grad_()
        return super().distances(x, t, s, normal(f).detach())


class Unbiased(PatchEBSW):
    "Less the distances within the two sets."
    def forward(self, x, t):
        h, distance = len(x)//2, super().forward
        return distance(x, t)-.5*distance(x[:h], x[h:])-.5*distance(t[:h], t[h:])


class Plus(nn.Module):
    "The patch divergence and a share of another one."
    def __init__(self, other, weight):
        super().__init__()
        self.patches, self.other, self.weight = PatchEBSW(), other, weight
    def forward(self, x, t):
        return self.patches(x, t)+self.weight*self.other(x, t)


class Coarse(nn.Module):
    "A divergence of whole images, pooled to 16x16."
    def __init__(self):
        super().__init__()
        self.div = make_divergence('ebsw')
    def forward(self, x, t):
        return self.div(F.avg_pool2d(x, 4), F.avg_pool2d(t, 4))


class LocalEnergy(nn.Module):
    "Patches of the logarithm of local energy."
    def __init__(self):
        super().__init__()
        self.div = PatchEBSW(scales=(1,))
    def energy(self, x):
        detail = x-F.avg_pool2d(x, 5, 1, 2)
        return F.avg_pool2d(detail.square(), 4).add(1e-3).log()
    def forward(self, x, t):
        return self.div(self.energy(x), self.energy(t))


class CoarseToFine(Callback):
    "Coarse scales first."
    order = -10
    since = {1: .6, 2: .3, 4: 0.} # scale -> share of the training after which it is used
    def before_batch(self):
        scales = tuple(s for s, share in self.since.items() if self.pct_train>=share)
        self.learn.loss_func.divergence.divergence.scales = scales


class FineAtLast(Callback):
    "Small patches in addition, in the last third."
    order = -10
    def before_fit(self):
        self.both = Plus(PatchEBSW(patch=3, scales=(1,)), .5)
    def before_batch(self):
        if self.pct_train>2/3:
            self.learn.loss_func.divergence.divergence = self.both


class Average(Callback):
    "The running mean of the weights replaces them at the end."
    order = 70
    def before_fit(self):
        self.mean = copy.deepcopy(self.learn.model)
    def after_step(self):
        means, weights = (m.state_dict().values() for m in (self.mean, self.learn.model))
        with torch.no_grad():
            for a, b in zip(means, weights):
                a.copy_(b) if not a.is_floating_point() or self.pct_train<.5 else a.lerp_(b, .02)
    def after_fit(self):
        self.learn.model.load_state_dict(self.mean.state_dict())


def straight_through(logits, temperature, training):
    "Binary masks in the place of level sets, with the derivative of the masks themselves."
    m = logits.sigmoid()
    return (m>.5).to(m)+m-m.detach() if training else m


def flipped(model, images):
    "Masks averaged over mirror images."
    masks = []
    for way in [(), (3,), (2,), (2, 3)]:
        mirrored = np.ascontiguousarray(np.flip(images, way))
        masks.append(np.flip(predict_masks(model, mirrored), way))
    return np.mean(masks, 0)


def with_features(s1):
    "The patch divergence and a share of that of the features of stage 1."
    of_features = make_divergence('ebsw', on='features', features=partial(local_descriptors, s1.encoder))
    return Plus(of_features, .3)


def always(make, *args, **kwargs):
    "A divergence that needs nothing of stage 1."
    return lambda s1: make(*args, **kwargs)


def whole_images_too(s1):
    return Plus(Coarse(), .3)


def local_energy_too(s1):
    return Plus(LocalEnergy(), .3)


@dataclass
class Idea:
    "What is changed."
    words: tuple = () # of the command line
    divergence: Callable = None # stage 1 -> what replaces the divergence
    callbacks: tuple = () # classes
    levels: Callable = None # replaces `level_sets`
    masks: Callable = predict_masks # model, images -> masks


IDEAS = {
    'as it is': Idea(),
    'twice the filters': Idea(['divergence.n_filters=64']),
    'half the filters': Idea(['divergence.n_filters=16']),
    'orthogonal filters': Idea(divergence=always(Orthogonal)),
    'zero-mean filters': Idea(divergence=always(ZeroMean)),
    'half the filters whitened': Idea(['divergence.whitened=.5']),
    'filters by ascent': Idea(divergence=always(Ascent)),
    'also scale 8': Idea(divergence=always(PatchEBSW, scales=(1, 2, 4, 8))),
    'coarse to fine': Idea(callbacks=[CoarseToFine]),
    'small patches at last': Idea(callbacks=[FineAtLast]),
    'whole images too': Idea(divergence=whole_images_too),
    'local energy too': Idea(divergence=local_energy_too),
    'features of stage 1 too': Idea(divergence=with_features),
    'less the distances within': Idea(divergence=always(Unbiased)),
    'one target cluster a batch': Idea(['trainer.clusters=1']),
    'straight-through masks': Idea(levels=straight_through),
    'masks as they are': Idea(['trainer.levels=0']),
    'no warm start': Idea(['trainer.warm=0']),
    'mean of the weights': Idea(callbacks=[Average]),
    'mirror images at prediction': Idea(masks=flipped)}


def distances(prob, part)->dict: # (N,1,H,W) masks, `Clustered`
    "Mean divergence of counterfactuals from targets over the clusters, with random and with whitened filters."
    obj, bg, oc, bc = part
    rng, found = np.random.default_rng(0), dict(random=[], whitened=[])
    torch.manual_seed(0)
    for k in np.unique(bc):
        s, t, b = (np.flatnonzero(v) for v in (oc != k, oc == k, bc == k))
        n = min(len(t), 150)
        s, b, t = rng.choice(s, n), rng.choice(b, n), rng.choice(t, n, False)
        masks = torch.as_tensor(prob[s] > .5).float()
        moved = composite(to_unit(obj.images[s]), to_unit(bg.images[b]), masks)
        for name, share in dict(random=0., whitened=1.).items():
            found[name].append(float(PatchEBSW(64, share)(moved, to_unit(obj.images[t]))))
    return {k: float(np.mean(v)) for k, v in found.items()}


def judge(prob, ds, s1, seed)->dict: # (N,1,H,W) masks of the validation part, Dataset, stage 1
    "Criteria of the validation part; lower is better, but for the IoU."
    part = s1.part(ds, 'valid')
    frechet = counterfactual_frechet(prob, part, partial(describe, s1.encoder), seed)['relative']
    return distances(prob, part) | dict(frechet=frechet, iou=float(mask_scores(prob, part.objects.masks)['iou']))


def train_idea(idea, cfg, ds, s1)->tuple: # Idea, settings, Dataset, stage 1 -> model, seconds
    "Stage 2 with one thing changed."
    before = losses.level_sets
    losses.level_sets = idea.levels or before
    try:
        learn = stage2_learner(cfg, ds, s1, [c() for c in idea.callbacks])
        if idea.divergence:
            learn.loss_func.divergence.divergence = idea.divergence(s1) # within the mean over target clusters
        return learn.model, fit_stage2(cfg, learn)
    finally:
        losses.level_sets = before


def try_idea(name, seed, words=())->dict: # of `IDEAS`, of the run, more words of the command line
    "Train with an idea, and judge it."
    idea = IDEAS[name]
    cfg = compose_config([*BASE, *idea.words, *words, f'seed={seed}'])
    ds = load_data(cfg.data)
    s1, _ = run_stage1(cfg, ds)
    model, seconds = train_idea(idea, cfg, ds, s1)
    prob = idea.masks(model, ds.part('valid')[0].images)
    return dict(seed=seed, seconds=seconds, **judge(prob, ds, s1, seed))


def file_of(name, seed): # of `IDEAS`, of the run or * for all
    "The file in which a finished run is kept."
    return f'{name.replace(" ", "_")}_seed{seed}.json'


def run_all(jobs, out): # (name, seed) pairs, folder
    "Make the runs that are not there yet."
    for name, seed in jobs:
        path = out/file_of(name, seed)
        if path.is_file():
            continue
        path.write_text(json.dumps(try_idea(name, seed)))
        print(name, path.read_text(), flush=True)


def write(out): # folder
    "Put all runs that are there into the file of the notebook."
    cases = {}
    for name in IDEAS:
        runs = [json.loads(p.read_text()) for p in sorted(out.glob(file_of(name, '*')))]
        if runs:
            cases[name] = dict(runs=runs)
    about = dict(ABOUT, base='bcd_train '+' '.join(BASE), cases=cases)
    (TOP/'nbs/results/studies/ideas.json').write_text(json.dumps(about, indent=1)+'\n')


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', help='beginnings of ideas')
    p.add_argument('--seeds', type=int, nargs='+', default=[5])
    p.add_argument('--share', type=int, nargs=2, metavar=('PART', 'OF'), help=SHARE)
    p.add_argument('--out', type=Path, default=Path('runs/ideas'), help='where finished runs are kept')
    return p.parse_args()


def main():
    a = arguments()
    keep_buffers()
    a.out.mkdir(parents=True, exist_ok=True)
    names = [n for n in IDEAS if not a.names or n.startswith(tuple(a.names))]
    jobs = [(n, s) for s in a.seeds for n in names]
    if a.share:
        part, of = a.share
        return run_all(jobs[part-1::of], a.out)
    run_all(jobs, a.out)
    write(a.out)


if __name__ == '__main__':
    main()
