"""Run the studies, each over several seeds, and write nbs/results/studies/NAME.json, which the studies notebook shows.

    python scripts/make_studies.py                          # everything, seeds 0, 1: three hours on one core
    python scripts/make_studies.py condition noise --seeds 0
    python scripts/make_studies.py --share 1 2              # the first of two halves, to run side by side; then without, to write the files
    python scripts/make_studies.py regions --set data.path=DIR --seeds 0 1 2 3 # what needs files

A run that has been made before with the same settings is found below runs/ and not made again.
"""
import argparse, json
from pathlib import Path

import numpy as np, pandas as pd

from make_results import shown
from bcd_fast.core import keep_buffers
from bcd_fast.data.datasets import load_data
from bcd_fast.training.learner import predict_masks
from bcd_fast.scoring.scores import mask_scores
from bcd_fast.prediction.models import load_model
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.runs import settings_of
from bcd_fast.experiments.notebooks import run_once

TOP = Path(__file__).resolve().parent.parent
BASE = ['experiment=synthetic_segmentation', 'trainer.epochs=4']
KEPT = ('seed', 'n_test', 'iou', 'ap', 'iou_per_image', 'cluster_nmi', 'assignment_accuracy', 'frechet_relative', 'seconds_stage1', 'seconds_stage2', 'peak_rss_mb', 'parameters', 'platform', 'torch')


NEITHER = ['trainer.div_weight=0', 'trainer.obj_weight=0'] # nothing is said of object images
ALONE = ['trainer.cf_weight=0', 'trainer.obj_weight=0', 'trainer.paste=0', 'trainer.warm=0'] # nothing is said but by the divergence, and of backgrounds
ROCK = ['experiment=sss_segmentation', 'data=regions', 'data.kind=127', 'data.seed=SEED', 'trainer.epochs=6'] # each seed tests on another quarter of the strips


def one(key, values):
    return {str(v): [f'{key}={v}'] for v in values}
def wrong(*words):
    return {f'{n}{label}': [*words, f'data.noise={n}', *clean] for label, clean in (('', []), (', clean', ['data.clean=true'])) for n in (0, .05, .1, .2)}
def on(d):
    return [f'divergence={d}', 'divergence.on=patches']

# study -> (question, label -> words of the command line beside BASE)
STUDIES = dict(
    condition=('Is background conditioning needed?', {'K=1, no condition': ['cluster.k=1'], 'K=2': ['cluster.k=2'], 'K=5': [], 'K=10': ['cluster.k=10']}),
    assignment=('What do learned clusters and mask-free assignment cost?', {'robust': [], 'naive': ['cluster.assign=naive'], 'oracle': ['cluster.assign=oracle']}),
    parts=('Which part of the loss does what?', {'all': [], 'no divergence': ['trainer.div_weight=0'], 'no counterfactuals': ['trainer.cf_weight=0'], 'no surest pixels': ['trainer.obj_weight=0'],
           'neither divergence nor surest': NEITHER, 'no blobs': ['trainer.paste=0', 'trainer.warm=0'], 'no level sets': ['trainer.levels=0']}),
    sonar=('Which part does what for small objects on sonar?', {label: ['experiment=sas_segmentation', 'trainer.epochs=6', *words] for label, words in {
           'all': [], 'K=1, no condition': ['cluster.k=1'], 'no divergence': ['trainer.div_weight=0'], 'no counterfactuals': ['trainer.cf_weight=0'],
           'no surest pixels': ['trainer.obj_weight=0'], 'neither divergence nor surest': NEITHER, 'no blobs': ['trainer.paste=0', 'trainer.warm=0']}.items()}),
    elsewhere=('Are divergence and condition needed elsewhere?', {f'{name}: {label}': [f'experiment={e}', 'trainer.epochs=4', *words]
               for name, e in dict(birds='cub_segmentation', wrecks='sss_segmentation').items()
               for label, words in {'all': [], 'K=1': ['cluster.k=1'], 'no divergence': ['trainer.div_weight=0']}.items()}),
    divergence=('Which divergence?', {'patch EBSW': [], 'EBSW, pixels': ['divergence=ebsw'], 'SW, pixels': ['divergence=sw'], 'DSWD, pixels': ['divergence=dswd'], 'max-SW, patches': on('max_sw'),
                'energy, patches': on('energy'), 'MMD, patches': on('mmd'), 'Sinkhorn, patches': on('sinkhorn')}),
    temperature=('How sharp should the weights of the slices be?', one('divergence.temperature', (.1, .3, 1, 3, 10))),
    objects=('How few object images suffice?', one('data.n_objects', (100, 300, 1000, 4000, 10000))),
    backgrounds=('How many backgrounds are needed?', one('data.n_backgrounds', (100, 300, 1000, 3000))),
    noise=('What if some background images show an object?', wrong() |
           {f'{n}, trim {t}': [f'data.noise={n}', f'trainer.trim={t}'] for n, t in ((0, .2), (.05, .2), (.1, .2), (.2, .4))}),
    noise_sonar=('And on sonar?', wrong('experiment=sas_segmentation', 'trainer.epochs=6')),
    object_size=('How small may an object be?', {str(s): [f'data.object_scale={s}', *(['trainer=small_objects'] if s < .5 else [])] for s in (1, .75, .5, .35, .25)}),
    masker=('How large should the masker be?', {'small': ['model=small'], 'fast': [], 'large': ['model=large']}),
    regions=('And for real objects: rock on a sea floor?', {label: [*ROCK, *words] for label, words in {
           'all': [], 'K=1, no condition': ['cluster.k=1'], 'no divergence': ['trainer.div_weight=0'], 'no counterfactuals': ['trainer.cf_weight=0'],
           'no surest pixels': ['trainer.obj_weight=0'], 'neither divergence nor surest': NEITHER, 'no blobs': ['trainer.paste=0', 'trainer.warm=0'],
           'divergence alone': ALONE, 'divergence alone, K=1': [*ALONE, 'cluster.k=1'], 'divergence alone, of pixels': [*ALONE, 'divergence=ebsw'],
           'supervised': ['supervised=true']}.items()}),
    regions_even=('And when the gain is evened out?', {label: [*ROCK, 'data.normalise=local', *words] for label, words in {
           'all': [], 'K=1, no condition': ['cluster.k=1'], 'no divergence': ['trainer.div_weight=0'], 'autoencoder': ['encoder=autoencoder'], 'supervised': ['supervised=true']}.items()}),
    noise_regions=('And on rock, where nothing was tuned?', wrong(*ROCK)),
    bound=('What would true masks give?', {'ours': [], 'supervised': ['supervised=true']}))


NEED_FILES = {'regions', 'regions_even', 'noise_regions'} # made when named, with --set data.path=...


def words_of(case, seed, *more):
    "The command line of a case; of two words with one key the later one stays."
    return list({w.partition('=')[0]: w.replace('SEED', str(seed)) for w in [*BASE, *case, *more, f'seed={seed}']}.values())


def kept(folder):
    "What the studies notebook shows of a run; `div` is the last validation divergence, which reads no mask."
    m = json.loads((folder/'metrics.json').read_text())
    return {k: m.get(k) for k in KEPT} | dict(div=float(pd.read_csv(folder/'history.csv')['div'].iloc[-1]))


def unseen(cases, seed):
    "Test images of the standard data with objects on which no case has trained: one test for data of different sizes."
    test = load_data(compose_config(words_of([], seed)).data).part('test')[0]
    seen = [ds.part(part)[0].groups for ds in (load_data(compose_config(words_of(c, seed)).data) for c in cases) for part in ('train', 'valid')]
    return test.subset(np.flatnonzero(~np.isin(test.groups, np.concatenate(seen))))


def rescore(row, folder, test):
    "The row with scores on these images; the distance was of the run's own test part, which may be tiny."
    found = mask_scores(predict_masks(load_model(folder/'model')[0], test.images), test.masks)
    return row | dict(n_test=len(test), frechet_relative=None) | {k: float(found[k]) for k in ('iou', 'ap', 'iou_per_image')}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', choices=[*STUDIES, []], metavar='NAME')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    p.add_argument('--share', type=int, nargs=2, metavar=('PART', 'OF'), help='make this part of the runs only and write nothing')
    p.add_argument('--cases', default='', metavar='TEXT', help='only cases with this in their label; the others stay in the file as they are')
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='more words of the command line')
    p.add_argument('--out', default='runs')
    a = p.parse_args()
    keep_buffers()
    names = a.names or [n for n in STUDIES if n not in NEED_FILES]
    jobs = [(n, label, s) for s in a.seeds for n in names for label in STUDIES[n][1] if a.cases in label]
    if a.share:
        jobs = [*{str(settings_of(compose_config(words_of(STUDIES[n][1][label], s, *a.set)))): (n, label, s) for n, label, s in jobs}.values()][a.share[0]-1::a.share[1]] # no run twice
    found = {n: {label: [] for label in STUDIES[n][1]} for n in names}
    tests = {s: unseen(STUDIES['objects'][1].values(), s) for s in a.seeds} if 'objects' in names and not a.share else {}
    for n, label, s in jobs:
        folder = run_once(words_of(STUDIES[n][1][label], s, *a.set), a.out)
        row = kept(folder)
        if n == 'objects' and tests:
            row = rescore(row, folder, tests[s])
        found[n][label].append(row)
        print(n, label, s, round(row['iou'], 3), round(row['seconds_stage2']), flush=True)
    if a.share:
        return
    folder = TOP/'nbs/results/studies'
    folder.mkdir(parents=True, exist_ok=True)
    for n in names:
        file = folder/f'{n}.json'
        cases = json.loads(file.read_text())['cases'] if a.cases and file.is_file() else {}
        cases |= {label: dict(command=shown(words_of(STUDIES[n][1][label], 'SEED', *a.set)), runs=runs) for label, runs in found[n].items() if a.cases in label}
        file.write_text(json.dumps(dict(study=n, question=STUDIES[n][0], cases=cases), indent=1)+'\n')


if __name__ == '__main__':
    main()
