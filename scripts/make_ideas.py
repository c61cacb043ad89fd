"""Try ideas that are not part of the package, and write nbs/results/studies/ideas.json, which the studies notebook shows.

    python scripts/make_ideas.py --seeds 5              # every idea: half an hour on one core
    python scripts/make_ideas.py "as it is" orthogonal --seeds 5 6   # those that looked good, on another seed
    python scripts/make_ideas.py --share 1 2            # the first of two halves, to run side by side; then without, to write the file

The file holds all runs that are there. Each idea changes one thing of a short training on digits. It is judged on held-out images by what reads no mask: the
divergence of counterfactuals from targets with random filters, with whitened filters, and the Fréchet distance. The IoU
stands beside for the record. An idea that wins belongs into a notebook; the others stay here.
"""
import argparse, copy, json
from functools import partial
from pathlib import Path

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
normal = lambda f: f/f.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class Orthogonal(PatchEBSW):
    "Filters at right angles."
    def filters(self, t):
        return torch.linalg.qr(torch.randn(t.shape[1]*self.patch**2, self.n_filters))[0].T.reshape(-1, t.shape[1], self.patch, self.patch)


class ZeroMean(PatchEBSW):
    "Filters that do not see brightness."
    def filters(self, t):
        f = random_filters(self.n_filters, t.shape[1], self.patch, t)
        return normal(f-f.mean((1,2,3), keepdim=True))


class Ascent(PatchEBSW):
    "Filters after some steps towards a larger distance, as in max-sliced Wasserstein."
    def distances(self, x, t, s, filters=None):
        f = super().filters(t).requires_grad_()
        with torch.enable_grad():
            for _ in range(2):
                g, = torch.autograd.grad(super().distances(x.detach(), t, s, normal(f)).sum(), f)
                f = (f+.3*normal(g)).detach().requires_grad_()
        return super().distances(x, t, s, normal(f).detach())


class Unbiased(PatchEBSW):
    "Less the distances within the two sets."
    def forward(self, x, t):
        h = len(x)//2
        return super().forward(x, t)-.5*super().forward(x[:h], x[h:])-.5*super().forward(t[:h], t[h:])


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
        return F.avg_pool2d((x-F.avg_pool2d(x, 5, 1, 2)).square(), 4).add(1e-3).log()
    def forward(self, x, t):
        return self.div(self.energy(x), self.energy(t))


class CoarseToFine(Callback):
    "Coarse scales first."
    order = -10
    def before_batch(self):
        self.learn.loss_func.divergence.scales = (4,) if self.pct_train<.3 else (2,4) if self.pct_train<.6 else (1,2,4)


class FineAtLast(Callback):
    "Small patches in addition, in the last third."
    order = -10
    def before_fit(self):
        self.both = Plus(PatchEBSW(patch=3, scales=(1,)), .5)
    def before_batch(self):
        if self.pct_train>2/3:
            self.learn.loss_func.divergence = self.both


class Average(Callback):
    "The running mean of the weights replaces them at the end."
    order = 70
    def before_fit(self):
        self.mean = copy.deepcopy(self.learn.model)
    def after_step(self):
        with torch.no_grad():
            for a, b in zip(self.mean.state_dict().values(), self.learn.model.state_dict().values()):
                a.copy_(b) if not a.is_floating_point() or self.pct_train<.5 else a.lerp_(b, .02)
    def after_fit(self):
        self.learn.model.load_state_dict(self.mean.state_dict())


def straight_through(logits, temperature, training):
    m = logits.sigmoid()
    return (m>.5).to(m)+m-m.detach() if training else m


def flipped(model, images):
    "Masks averaged over mirror images."
    ways = [(), (3,), (2,), (2,3)]
    return np.mean([np.flip(predict_masks(model, np.ascontiguousarray(np.flip(images, w))), w) for w in ways], 0)


def features_of(s1):
    return make_divergence('ebsw', on='features', features=lambda x: local_descriptors(s1.encoder, x))


# idea -> words, what replaces the divergence (given stage 1), callbacks
IDEAS = {
    'as it is': {}, 'twice the filters': dict(words=['divergence.n_filters=64']), 'half the filters': dict(words=['divergence.n_filters=16']),
    'orthogonal filters': dict(div=lambda s1: Orthogonal()), 'zero-mean filters': dict(div=lambda s1: ZeroMean()), 'half the filters whitened': dict(words=['divergence.whitened=.5']),
    'filters by ascent': dict(div=lambda s1: Ascent()), 'also scale 8': dict(div=lambda s1: PatchEBSW(scales=(1,2,4,8))), 'coarse to fine': dict(cbs=[CoarseToFine]),
    'small patches at last': dict(cbs=[FineAtLast]), 'whole images too': dict(div=lambda s1: Plus(Coarse(), .3)), 'local energy too': dict(div=lambda s1: Plus(LocalEnergy(), .3)),
    'features of stage 1 too': dict(div=lambda s1: Plus(features_of(s1), .3)), 'less the distances within': dict(div=lambda s1: Unbiased()),
    'one target cluster a batch': dict(words=['trainer.clusters=1']), 'straight-through masks': dict(levels=straight_through), 'masks as they are': dict(words=['trainer.levels=0']),
    'no warm start': dict(words=['trainer.warm=0']), 'mean of the weights': dict(cbs=[Average]), 'mirror images at prediction': dict(masks=flipped)}


def judge(prob, ds, s1, seed)->dict:
    "Criteria of the validation part; lower is better, but for the IoU."
    obj, bg = ds.part('valid')
    oc, bc = s1.assigned['valid_objects'], s1.assigned['valid_backgrounds']
    rng, found = np.random.default_rng(0), dict(random=[], whitened=[])
    torch.manual_seed(0)
    for k in np.unique(bc):
        s, t, b = (np.flatnonzero(v) for v in (oc!=k, oc==k, bc==k))
        n = min(len(t), 150)
        s, b, t = rng.choice(s, n), rng.choice(b, n), rng.choice(t, n, False)
        moved = composite(to_unit(obj.images[s]), to_unit(bg.images[b]), torch.as_tensor(prob[s]>.5).float())
        for name, share in dict(random=0., whitened=1.).items():
            found[name].append(float(PatchEBSW(64, share)(moved, to_unit(obj.images[t]))))
    out = {k: float(np.mean(v)) for k, v in found.items()}
    out['frechet'] = counterfactual_frechet(prob, s1.part(ds, 'valid'), partial(describe, s1.encoder), seed)['relative']
    return out | dict(iou=float(mask_scores(prob, obj.masks)['iou']))


def try_idea(name, seed)->dict:
    idea = IDEAS[name]
    cfg = compose_config([*BASE, *idea.get('words', []), f'seed={seed}'])
    ds = load_data(cfg.data)
    s1, _ = run_stage1(cfg, ds)
    before = losses.level_sets
    losses.level_sets = idea.get('levels', before)
    try:
        learn = stage2_learner(cfg, ds, s1, [c() for c in idea.get('cbs', [])])
        if 'div' in idea:
            learn.loss_func.divergence = idea['div'](s1)
        seconds = fit_stage2(cfg, learn)
    finally:
        losses.level_sets = before
    return dict(seed=seed, seconds=seconds, **judge(idea.get('masks', predict_masks)(learn.model, ds.part('valid')[0].images), ds, s1, seed))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', help='beginnings of ideas')
    p.add_argument('--seeds', type=int, nargs='+', default=[5])
    p.add_argument('--share', type=int, nargs=2, metavar=('PART', 'OF'), help='make this part of the runs only and write nothing')
    p.add_argument('--out', type=Path, default=Path('runs/ideas'), help='where finished runs are kept')
    a = p.parse_args()
    keep_buffers()
    a.out.mkdir(parents=True, exist_ok=True)
    names = [n for n in IDEAS if not a.names or n.startswith(tuple(a.names))]
    jobs = [(n, s) for s in a.seeds for n in names]
    if a.share:
        jobs = jobs[a.share[0]-1::a.share[1]]
    for n, s in jobs:
        path = a.out/f'{n.replace(" ", "_")}_seed{s}.json'
        if path.is_file():
            continue
        path.write_text(json.dumps(try_idea(n, s)))
        print(n, path.read_text(), flush=True)
    if a.share:
        return
    runs = {n: [json.loads(p.read_text()) for p in sorted(a.out.glob(f'{n.replace(" ", "_")}_seed*.json'))] for n in IDEAS}
    about = dict(study='ideas', question='Which ideas help, by criteria that read no mask?', command='python scripts/make_ideas.py', base='bcd_train '+' '.join(BASE))
    (TOP/'nbs/results/studies/ideas.json').write_text(json.dumps(dict(**about, cases={n: dict(runs=r) for n, r in runs.items() if r}), indent=1)+'\n')


if __name__ == '__main__':
    main()
