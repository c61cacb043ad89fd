"""What a few corrected masks teach: a JSON line for each set, way, number of masks and seed.

    python scripts/make_corrections.py --data DIR --sets A B               # 0 to 50 masks, three seeds
    python scripts/make_corrections.py --data DIR --sets A --masks 0 10 --seeds 0 --ways random suggested

Sets are those of make_real.py. A training gets links to objects/ and backgrounds/, and corrected/ with as many masks as
are asked for, made of masks/: *random* object pictures, or those that `bcd_suggest` names with the model that has seen
no mask (*suggested*; a background among them gets an empty mask). *alone* learns from the masks of the random ones and
from backgrounds, and from nothing else of the object pictures. Scores are of test_objects/ and test_backgrounds/.
FOLDER/corrections.jsonl grows by a line as soon as a run is scored; what is there is not run again.
FOLDER/corrections.csv has means over seeds, and how much of the way from no mask to the bound of make_real.py is gone.
"""
import argparse, shutil, sys, time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from make_real import KEPT, TEST, TRAINED, call, commit, links, make_all, rows_in # first: torch reads what it sets
import numpy as np, pandas as pd, torch
from bcd_fast import __version__
from bcd_fast.core import InputError, only_one, platform_text, write_whole
from bcd_fast.data.corrected import CORRECTED, GROUND, OBJECT, pictures_of, write_corrected
from bcd_fast.data.folders import object_pixels
from bcd_fast.data.formats import read_pictures
from bcd_fast.prediction.suggestions import suggest
from bcd_fast.commands.eval import evaluate_folder, with_masks

WAYS = 'random', 'suggested', 'alone'
MASKS = 0, 1, 2, 5, 10, 20, 50
SHOWN = 'iou', 'best', 'ap', 'background_masked', 'picture_auroc', 'seconds'
WAY = 'iou', 'ap' # of which the share of the way to the bound is given
# nothing is learned from object pictures but what was drawn on them
ALONE = '''
import sys
from bcd_fast.training.bag_learner import BagCallback
BagCallback.known = lambda self: []
from bcd_fast.train import bcd_train
sys.exit(bcd_train())
'''
OF_ALONE = ['trainer.obj_weight=0', 'trainer.pair_weight=0']


@dataclass(frozen=True)
class Job:
    "A run that is to be made."
    data: Path # of the set
    way: str # of `WAYS`
    masks: int # how many
    seed: int
    out: Path # of all results
    words: tuple = () # more words for `bcd_train`

    @property
    def key(self):
        return self.data.name, self.way, self.masks, self.seed

    @property
    def run(self):
        return self.out/'runs'/self.data.name/f'{self.way}_{self.masks}_{self.seed}'


def true_masks(data):
    "Name of an object picture, as of `pictures_of` -> file of its true mask."
    return {f'objects/{p.relative_to(data/"objects").as_posix()}': m for p, m in with_masks(data)[0]}


def chosen(job, folder):
    "Names of the pictures whose masks are learned from."
    if job.way == 'suggested':
        return [s.picture for s in suggest(first_model(job), folder, job.masks, job.seed)[0]]
    names = sorted(true_masks(job.data))
    order = np.random.default_rng(100+job.seed).permutation(len(names))
    return [names[i] for i in order[:job.masks]]


def first_model(job):
    "The model that has seen no mask; trained anew where only its line is left."
    first = replace(job, way='random', masks=0)
    if not (first.run/'model').is_dir():
        with run_folder(first) as folder:
            train(first, folder)
    return first.run/'model'


def correct(job, folder):
    "Write the masks of the chosen pictures."
    truths, paths = true_masks(job.data), pictures_of(folder)
    for name in chosen(job, folder):
        shape = read_pictures(paths[name])[0].values.shape[1:]
        mask = np.full(shape, GROUND, np.uint8)
        if name in truths:
            inside = object_pixels(read_pictures(truths[name], channels=1)[0], name, shape)
            mask = np.where(inside, OBJECT, GROUND).astype(np.uint8)
        write_corrected(folder, name, mask)


def train(job, folder):
    "Train in a process of its own."
    words = ['experiment=folder', f"data.path='{folder}'", f'seed={job.seed}', *job.words]
    places = [f"hydra.run.dir='{job.run}'", f"cache='{job.run/'cache'}'", 'bar=false']
    start = ['-c', ALONE] if job.way == 'alone' else ['-m', 'bcd_fast.train']
    call([sys.executable, *start, *words, *(OF_ALONE if job.way == 'alone' else ()), *places], job.run/'log.txt')
    if not (job.run/'metrics.json').is_file():
        raise InputError(f'{job.run}/log.txt: no metrics.json was written')


@contextmanager
def run_folder(job):
    "An empty folder for the run, which no other process writes to, and one of links to what it is trained with."
    runs = job.run.parent
    runs.mkdir(parents=True, exist_ok=True)
    with only_one(runs, f'.lock.{job.run.name}'), links(job.data, TRAINED) as folder:
        shutil.rmtree(job.run, ignore_errors=True)
        job.run.mkdir()
        yield folder


@contextmanager
def masks_kept(job, folder):
    "The corrected masks go to the folder of the run."
    yield
    if (folder/CORRECTED).is_dir():
        shutil.copytree(folder/CORRECTED, job.run/CORRECTED)


def make(job):
    "Make a run and score it: its line."
    start = time.perf_counter()
    with run_folder(job) as folder, masks_kept(job, folder):
        if job.masks:
            correct(job, folder)
        train(job, folder)
    seconds = time.perf_counter()-start
    scores = evaluate_folder(job.run/'model', job.data, TEST)
    about = dict(set=job.data.name, way=job.way, masks=job.masks, seed=job.seed, words=' '.join(job.words))
    made = dict(seconds=seconds, version=__version__, commit=commit(), torch=torch.__version__,
                machine=platform_text(), when=time.strftime('%Y-%m-%d %H:%M'))
    return about | {k: scores[k] for k in KEPT} | made


def summary(rows, real):
    "Means over seeds, standard deviations, and the share of the way to the bound, which make_real.py has written."
    runs = pd.DataFrame(rows).groupby(['set', 'way', 'masks'], sort=False)
    of = runs[list(SHOWN)]
    made = runs[['machine', 'torch', 'commit']].agg(lambda v: ' / '.join(sorted(set(v))))
    t = of.mean().assign(seeds=of.size()).join(of.std().add_suffix('_sd')).join(made).reset_index()
    t = t.sort_values(['set', 'way', 'masks'], kind='stable')
    bound = real[real.method == 'supervised'].set_index('set')
    none = t[(t.way == 'random') & (t.masks == 0)].set_index('set')
    for k in WAY:
        start, end = t.set.map(none[k]), t.set.map(bound[k])
        t[f'{k}_of_way'] = (t[k]-start)/(end-start)
        t[f'{k}_bound'] = end
    return t


def write_summary(out, real):
    "corrections.csv from corrections.jsonl and real.csv."
    table = summary(rows_in(out/'corrections.jsonl'), pd.read_csv(real))
    write_whole(out/'corrections.csv', table.to_csv(index=False, float_format='%.4f').encode())
    return table


def jobs(a):
    "All runs that are asked for; without masks first, for others are suggested by what they have learned."
    sets = [Path(a.data)/s for s in a.sets]
    for data in sets:
        if not (data/'test_objects').is_dir():
            raise InputError(f'{data} is no set: expected test_objects/, test_masks/, objects/ and masks/.')
    more = dict(out=Path(a.out).resolve(), words=tuple(a.set))
    return [Job(d, way, n, s, **more) for s in a.seeds for n in sorted(a.masks) for d in sets for way in a.ways
            if n or way == 'random']


def arguments(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True, metavar='DIR', help='folder of sets')
    p.add_argument('--sets', required=True, nargs='+', metavar='NAME')
    p.add_argument('--masks', type=int, nargs='+', default=list(MASKS), metavar='N')
    p.add_argument('--ways', nargs='+', default=list(WAYS), choices=WAYS)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--out', default='runs/corrections', metavar='FOLDER')
    p.add_argument('--real', default='nbs/results/real.csv', metavar='FILE', help='what make_real.py has written')
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='more words for bcd_train')
    return p.parse_args(words)


def main(words=None):
    a = arguments(words)
    out = Path(a.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        todo = jobs(a)
    except InputError as e:
        sys.exit(f'error: {e}')
    failed = make_all(todo, out/'corrections.jsonl', SHOWN, make, lambda: write_summary(out, a.real))
    sys.exit(2 if failed else 0)


if __name__ == '__main__':
    main()
