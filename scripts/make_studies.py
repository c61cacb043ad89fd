"""Run the studies, each over several seeds, and write nbs/results/studies/NAME.json, which the studies notebook shows.

    python scripts/make_studies.py                  # everything, seeds 0, 1: three hours on one core
    python scripts/make_studies.py condition noise --seeds 0
    python scripts/make_studies.py --share 1 2      # the first of two halves, to run side by side
    python scripts/make_studies.py                  # then without, to write the files
    python scripts/make_studies.py regions --set data.path=DIR --seeds 0 1 2 3 # what needs files
    python scripts/make_studies.py third_real # in the folder that holds the sets of real pictures

A run that has been made before with the same settings is found below runs/ and not made again.
"""
import argparse, json
from dataclasses import dataclass
from pathlib import Path

import numpy as np, pandas as pd
from omegaconf import OmegaConf

from make_results import ROCK as REGIONS, shown
from bcd_fast.core import keep_buffers
from bcd_fast.data.datasets import load_data
from bcd_fast.training.learner import predict_masks
from bcd_fast.scoring.condition import verdict
from bcd_fast.scoring.scores import mask_scores
from bcd_fast.prediction.models import load_model
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.runs import settings_of
from bcd_fast.experiments.notebooks import is_made, run_once

TOP = Path(__file__).resolve().parent.parent
BASE = ['experiment=synthetic_segmentation', 'trainer.epochs=4']
KEPT = ('seed', 'n_test', 'iou', 'ap', 'iou_per_image', 'cluster_nmi', 'assignment_accuracy', 'frechet_relative',
        'seconds_stage1', 'seconds_stage2', 'peak_rss_mb', 'parameters', 'platform', 'torch')
SCORES = 'iou', 'ap', 'iou_per_image'

# words of the command line that several cases share
NO_BLOBS = ['trainer.paste=0', 'trainer.warm=0']
NEITHER = ['trainer.div_weight=0', 'trainer.obj_weight=0'] # nothing is said of object images
ALONE = ['trainer.cf_weight=0', 'trainer.obj_weight=0', *NO_BLOBS] # but for the divergence, and backgrounds
SONAR = ['experiment=sas_segmentation', 'trainer.epochs=6']
ROCK = [*REGIONS, 'trainer.epochs=6']
SUPERVISED = ['supervised=true']

# folders of real pictures
REAL = 'sdvd', 'fls_debris', 'sss_posidonia_rock', 'water_s2', 'brain_flair', 'kolektor'

# label -> words: without one part each
ONE_CLUSTER = {'K=1, no condition': ['cluster.k=1']}
NO_DIVERGENCE = {'no divergence': ['trainer.div_weight=0']}
NO_OTHERS = {
    'no counterfactuals': ['trainer.cf_weight=0'],
    'no surest pixels': ['trainer.obj_weight=0'],
    'neither divergence nor surest': NEITHER,
    'no blobs': NO_BLOBS}
WITHOUT = {'all': [], **ONE_CLUSTER, **NO_DIVERGENCE, **NO_OTHERS}


def one(key, values):
    "A case for each value of a setting."
    return {str(v): [f'{key}={v}'] for v in values}


def after(words, cases):
    "Cases that all begin with the same words."
    return {label: [*words, *more] for label, more in cases.items()}


def wrong(*words):
    "Backgrounds some of which show an object, as they are and cleaned."
    cases, shares = {}, (0, .05, .1, .2)
    for label, more in {'': [], ', clean': ['data.clean=true']}.items():
        cases |= {f'{n}{label}': [*words, f'data.noise={n}', *more] for n in shares}
    return cases


def on_patches(name):
    return [f'divergence={name}', 'divergence.on=patches']


def of_size(scale):
    "Objects of this size; small ones need other settings of the trainer."
    return [f'data.object_scale={scale}', *(['trainer=small_objects'] if scale < .5 else [])]


def elsewhere(name, experiment):
    "Whether divergence and condition are needed on other data."
    cases = {'all': [], 'K=1': ['cluster.k=1'], **NO_DIVERGENCE}
    named = {f'{name}: {label}': words for label, words in cases.items()}
    return after([f'experiment={experiment}', 'trainer.epochs=4'], named)


def trimmed(pairs):
    "Some backgrounds show an object, and the worst of a batch are left out: pairs of the two shares."
    return {f'{n}, trim {t}': [f'data.noise={n}', f'trainer.trim={t}'] for n, t in pairs}


# what the divergence learns alone: no counterfactuals of known mask, no blobs, no surest pixels
MNIST_32 = ['data=mnist', 'data.size=32', 'data.n_objects=10000', 'data.n_backgrounds=20000', 'data.reference=true',
            'cluster.n_components=16', 'cluster.all_parts=false', # one stage 1 for all cases
            'callbacks.keep_best=true', 'trainer.steps=100', 'trainer.epochs=20']
SMALL_UNET = ['model=unet', 'model.width=16', 'trainer.lr=3e-3']
PIXELS = ['recipe=paper', *SMALL_UNET, 'trainer.optimizer=adam', 'trainer.bs=200', 'trainer.epochs=12']
COARSE = ['model=fast'] # masks of squares of 2x2 pixels
AS_MANY = ['trainer.bs=32', 'trainer.steps=625'] # images in all, fewer in a batch
PATCHES = [*SMALL_UNET, 'trainer.loss=paper', 'trainer.bootstrap=0', 'trainer.clusters=1', 'trainer.bs=64',
           'trainer.targets=384', 'trainer.bg_weight=1', 'trainer.div_weight=10', 'trainer.wd=0', 'trainer.paste=0',
           'trainer.warm=0', 'divergence.root=true']
ORACLE = ['cluster.assign=oracle']


def alone(name, words, clusters, numbers):
    "A case for each number of clusters."
    return {f'{name}, K={k}': [*words, *clusters, f'cluster.k={k}'] for k in numbers}


# a third of the gradient on the masks' logits for the divergence, with a batch and targets of its own size
THIRD = ['trainer.clusters=1', 'trainer.bs=64', 'trainer.targets=384', 'trainer.div_share=.333']
DIGITS = ['experiment=synthetic_segmentation', 'trainer.epochs=6']
BIRDS = ['experiment=cub_segmentation', 'trainer.epochs=6']
WRECKS = ['experiment=sss_segmentation', 'trainer.epochs=6']
TRANSLUCENT = [*DIGITS, 'data=dsprites', 'trainer=small_objects', 'data.opacity=.8']
SHADOWED = [*WRECKS, 'data.shadow=true']


def third(name, words):
    "Divergence, its condition, and neither, at the same batch."
    cases = {'as it is': [], 'a third': THIRD, 'a third, K=1': [*THIRD, 'cluster.k=1'],
             'no divergence': [*THIRD[:2], 'trainer.div_weight=0']}
    return after(words, {f'{name}: {label}': more for label, more in cases.items()})


def real(name):
    "Windows of real pictures in a folder of this name."
    words = ['experiment=folder', f'data.path={name}', 'cluster.k=5', 'trainer.epochs=6']
    cases = third(name, words)
    del cases[f'{name}: as it is']
    return cases


def gains(*words):
    "Clusters, ways to take the gain out, and objects that take on the gain of their new ground."
    return {f'{way}, K={k}{named}': [*words, *THIRD, f'data.normalise={way}', f'cluster.k={k}', *more]
            for way in ('auto', 'local', 'mean16') for k in (1, 2)
            for named, more in {'': [], ', harmonised': ['trainer.harmonise=true']}.items()}


# study -> label -> words of the command line beside BASE
CASES = dict(
    condition={**ONE_CLUSTER, 'K=2': ['cluster.k=2'], 'K=5': [], 'K=10': ['cluster.k=10']},
    assignment={'robust': [], 'naive': ['cluster.assign=naive'], 'oracle': ['cluster.assign=oracle']},
    parts={'all': [], **NO_DIVERGENCE, **NO_OTHERS, 'no level sets': ['trainer.levels=0']},
    sonar=after(SONAR, WITHOUT),
    elsewhere=elsewhere('birds', 'cub_segmentation') | elsewhere('wrecks', 'sss_segmentation'),
    divergence={
        'patch EBSW': [],
        'EBSW, pixels': ['divergence=ebsw'],
        'SW, pixels': ['divergence=sw'],
        'DSWD, pixels': ['divergence=dswd'],
        'max-SW, patches': on_patches('max_sw'),
        'energy, patches': on_patches('energy'),
        'MMD, patches': on_patches('mmd'),
        'Sinkhorn, patches': on_patches('sinkhorn')},
    temperature=one('divergence.temperature', (.1, .3, 1, 3, 10)),
    objects=one('data.n_objects', (100, 300, 1000, 4000, 10000)),
    backgrounds=one('data.n_backgrounds', (100, 300, 1000, 3000)),
    noise=wrong() | trimmed([(0, .2), (.05, .2), (.1, .2), (.2, .4)]),
    noise_sonar=wrong(*SONAR),
    object_size={str(s): of_size(s) for s in (1, .75, .5, .35, .25)},
    masker={'small': ['model=small'], 'fast': [], 'large': ['model=large']},
    regions=after(ROCK, {
        **WITHOUT,
        'divergence alone': ALONE,
        'divergence alone, K=1': [*ALONE, 'cluster.k=1'],
        'divergence alone, of pixels': [*ALONE, 'divergence=ebsw'],
        'supervised': SUPERVISED}),
    regions_even=after([*ROCK, 'data.normalise=local'], {
        'all': [], **ONE_CLUSTER, **NO_DIVERGENCE, 'autoencoder': ['encoder=autoencoder'], 'supervised': SUPERVISED}),
    noise_regions=wrong(*ROCK),
    bound={'ours': [], 'supervised': SUPERVISED},
    alone=after(MNIST_32, {
        **alone('pixels, 400', PIXELS, ORACLE, (10, 5, 1)),
        **alone('pixels, 400, masker fast', [*PIXELS, *COARSE], ORACLE, (5,)),
        **alone('pixels, 64', [*PIXELS, *AS_MANY], ORACLE, (5, 1)),
        **alone('patches, 64 and 384', PATCHES, ORACLE, (10, 5, 1)),
        **alone('patches, learned clusters', PATCHES, [], (5,)),
        'no divergence': [*PIXELS, 'trainer.div_weight=0', 'trainer.epochs=2'],
        'fast, K=5': [*SMALL_UNET, 'cluster.k=5'],
        'supervised': [*SMALL_UNET, *SUPERVISED]}),
    third=third('digits', DIGITS) | third('sonar', SONAR),
    third_rock=third('rock', ROCK),
    third_others=third('birds', BIRDS) | third('wrecks', WRECKS),
    third_hard={
        **third('translucent sprites', TRANSLUCENT),
        'translucent sprites: supervised': [*TRANSLUCENT, *SUPERVISED],
        **third('wrecks with shadows', SHADOWED),
        'wrecks with shadows: supervised': [*SHADOWED, *SUPERVISED]},
    third_real={label: words for name in REAL for label, words in real(name).items()},
    gains=gains(*ROCK),
    acid=after(SONAR, {
        'no blobs': NO_BLOBS,
        'no blobs, a third': [*NO_BLOBS, *THIRD],
        'no blobs, a third, K=1': [*NO_BLOBS, *THIRD, 'cluster.k=1'],
        'no blobs, no divergence': [*NO_BLOBS, *THIRD[:2], 'trainer.div_weight=0'],
        'no blobs, no divergence, K=1': [*NO_BLOBS, *THIRD[:2], 'trainer.div_weight=0', 'cluster.k=1'],
        'patches alone': [*PATCHES, 'model=fast'],
        'patches alone, K=1': [*PATCHES, 'model=fast', 'cluster.k=1']}))

QUESTIONS = dict(
    condition='Is background conditioning needed?',
    assignment='What do learned clusters and mask-free assignment cost?',
    parts='Which part of the loss does what?',
    sonar='Which part does what for small objects on sonar?',
    elsewhere='Are divergence and condition needed elsewhere?',
    divergence='Which divergence?',
    temperature='How sharp should the weights of the slices be?',
    objects='How few object images suffice?',
    backgrounds='How many backgrounds are needed?',
    noise='What if some background images show an object?',
    noise_sonar='And on sonar?',
    object_size='How small may an object be?',
    masker='How large should the masker be?',
    regions='And for real objects: rock on a sea floor?',
    regions_even='And when the gain is evened out?',
    noise_regions='And on rock, where nothing was tuned?',
    bound='What would true masks give?',
    alone='What do divergence and backgrounds learn alone?',
    third='Does a third of the gradient make the divergence useful?',
    third_rock='And on rock?',
    third_others='And on birds and wrecks?',
    third_real='And on windows of real pictures that nobody has pasted?',
    third_hard='And where blobs are the wrong prior: translucent objects, and wrecks with their shadows?',
    gains='Does a shared gain turn the divergence around, and can that be mended?',
    acid='Can a divergence do without blobs on sonar?')
# written before the first run of each
PREDICTIONS = dict(
    third='Digits: a third is better than no divergence by .01 to .03 in IoU, and K=1 is no better than none. '
          'Sonar: all within the spread of seeds, for the objects are too small to change the distribution of patches.',
    third_rock='K=2 is worse than no divergence by .03 or more, for its clusters follow brightness; '
               'K=1 is as good as none.',
    third_others='Birds and wrecks: all within the spread of seeds, for blobs and counterfactuals do the work.',
    third_real='Object and ground share gain and kind, so five clusters are worse than no divergence by .03 or more on '
               'the two sonar sets and within seed spread on debris and water; K=1 is as good as none everywhere.',
    third_hard='Translucent sprites: a cut-out takes its old ground along, so that a comparison within one cluster '
               'punishes true masks; K=5 is worse than no divergence by .03 or more, K=1 within .02 of it. Wrecks with '
               'shadows: blobs have one texture and these objects two, so that a third with K=1 is better than no '
               'divergence by .03 or more.',
    gains='Without the gain taken out (auto) K=2 loses .03 or more against K=1, and harmonised objects mend it. With '
          'local or mean16 there is no difference between K=2 and K=1, harmonised or not.',
    acid='Without blobs the recipe finds nothing (IoU below .05) with no divergence and with K=1, and between .2 and '
         '.5 with a third of the gradient; patches alone find .3 with clusters and below .1 without.')

STUDIES = {n: (QUESTIONS[n], cases) for n, cases in CASES.items()}
# made when named, with --set data.path=...
NEED_FILES = {'regions', 'regions_even', 'noise_regions', 'alone', 'third_rock', 'third_real', 'gains'}
HELP = dict(share='make this part of the runs only and write nothing', set='more words of the command line',
            found='only runs that have been made before',
            cases='only cases with this in their label; the others stay in the file as they are, and so do rows of '
                  'other seeds with the same command')


def words_of(case, seed, *more):
    "The command line of a case; of two words with one key the later one stays."
    words = [*BASE, *case, *more, f'seed={seed}']
    return list({w.partition('=')[0]: w.replace('SEED', str(seed)) for w in words}.values())


def kept(folder):
    "What the studies notebook shows of a run; `div` is the last validation divergence, which reads no mask."
    m = json.loads((folder/'metrics.json').read_text())
    history = pd.read_csv(folder/'history.csv')
    curve = history[['seconds', 'iou']].round(4).values.tolist() if 'iou' in history else []
    t = OmegaConf.load(folder/'config.yaml').trainer
    of_training = dict(div=float(history['div'].iloc[-1]), sources_an_epoch=t.bs*t.steps, curve=curve)
    return {k: m.get(k) for k in KEPT} | of_training | judged(folder)


def judged(folder):
    "What the judge says of the clusters, where it was asked: fit or not, and t of each change in the worst cluster."
    path = folder/'condition.json'
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    t = pd.DataFrame(found['clusters']).drop(columns='cluster').min().round(2)
    return dict(fit=not verdict(found['clusters']), **{f't_{name}': v for name, v in t.items()})


def data_of(case, seed):
    "The data of a case."
    return load_data(compose_config(words_of(case, seed)).data)


def unseen(cases, seed):
    "Test images of the standard data with objects on which no case has trained: one test for data of different sizes."
    test = data_of([], seed).part('test')[0]
    seen = [ds.part(part)[0].groups for ds in (data_of(c, seed) for c in cases) for part in ('train', 'valid')]
    return test.subset(np.flatnonzero(~np.isin(test.groups, np.concatenate(seen))))


def rescore(row, folder, test):
    "The row with scores on these images; the distance was of the run's own test part, which may be tiny."
    model, *_ = load_model(folder/'model')
    found = mask_scores(predict_masks(model, test.images), test.masks)
    return row | dict(n_test=len(test), frechet_relative=None) | {k: float(found[k]) for k in SCORES}


@dataclass
class Job:
    "One run."
    study: str
    label: str # of the case
    seed: int

    def words(self, more): # more words of the command line
        return words_of(CASES[self.study][self.label], self.seed, *more)


def share_of(jobs, more, part, of): # jobs, more words of the command line, from 1
    "One of `of` parts of the jobs, in which no run stands twice."
    different = {str(settings_of(compose_config(j.words(more)))): j for j in jobs}
    return list(different.values())[part-1::of]


def make(job, more, out, tests): # more words of the command line, folder, seed -> test images for the study of sizes
    "Make a run, where it is not there yet, and tell what is kept of it."
    folder = run_once(job.words(more), out)
    row = kept(folder)
    if job.study == 'objects' and tests:
        row = rescore(row, folder, tests[job.seed])
    print(job.study, job.label, job.seed, round(row['iou'], 3), round(row['seconds_stage2']), flush=True)
    return row


def with_earlier(runs, earlier):
    "Runs sorted by seed; those of other seeds stay."
    of_seed = {run['seed']: run for run in (*earlier, *runs)}
    return [of_seed[seed] for seed in sorted(of_seed)]


def write(study, rows, more, add): # label -> rows, more words of the command line
    "Write the file of a study; with `add` its other cases stay, and so do other seeds of the same command."
    file = TOP/f'nbs/results/studies/{study}.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    cases = json.loads(file.read_text())['cases'] if add and file.is_file() else {}
    for label, runs in rows.items():
        command = shown(words_of(CASES[study][label], 'SEED', *more))
        before = cases.get(label, {})
        earlier = before['runs'] if before.get('command') == command else [] # others were made in another way
        cases[label] = dict(command=command, runs=with_earlier(runs, earlier))
    said = dict(prediction=PREDICTIONS[study]) if study in PREDICTIONS else {}
    about = dict(study=study, question=QUESTIONS[study], **said, cases=cases)
    file.write_text(json.dumps(about, indent=1)+'\n')


def labels_of(study, text):
    "The case of this label, or all that have the text in theirs."
    return [text] if text in CASES[study] else [label for label in CASES[study] if text in label]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', choices=[*STUDIES, []], metavar='NAME')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    p.add_argument('--share', type=int, nargs=2, metavar=('PART', 'OF'), help=HELP['share'])
    p.add_argument('--cases', default='', metavar='TEXT', help=HELP['cases'])
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help=HELP['set'])
    p.add_argument('--found', action='store_true', help=HELP['found'])
    p.add_argument('--out', default='runs')
    return p.parse_args()


def main():
    a = arguments()
    keep_buffers()
    names = a.names or [n for n in STUDIES if n not in NEED_FILES]
    labels = {n: labels_of(n, a.cases) for n in names}
    jobs = [Job(n, label, s) for s in a.seeds for n in names for label in labels[n]]
    if a.found:
        jobs = [j for j in jobs if is_made(j.words(a.set), a.out)]
    if a.share:
        for job in share_of(jobs, a.set, *a.share):
            make(job, a.set, a.out, {})
        return
    tests = {s: unseen(CASES['objects'].values(), s) for s in a.seeds} if 'objects' in names else {}
    rows = {n: {label: [] for label in labels[n]} for n in names}
    for job in jobs:
        rows[job.study][job.label].append(make(job, a.set, a.out, tests))
    for n in names:
        write(n, {label: runs for label, runs in rows[n].items() if runs}, a.set, add=bool(a.cases))


if __name__ == '__main__':
    main()
