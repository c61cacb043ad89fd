"""How well does the criterion without masks follow the IoU? Judges the maskers of runs that make_studies.py has made.

    python scripts/make_judged.py third acid --seeds 0 1 2
    python scripts/make_judged.py third_rock gains --seeds 0 1 --set data.path=DIR

Whether clusters are fit to judge masks is asked once for each set of images, of the masker that was trained without
the divergence; where there is none, or it finds nothing, they are not. Only validation images are looked at; the IoU
of the test images is read from the run. Writes nbs/results/studies/judged.json; sets of images that it does not name
stay in the file.
"""
import argparse, json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from make_studies import CASES, SUPERVISED, TOP, words_of
from bcd_fast.backgrounds.stage1 import load_stage1
from bcd_fast.data.datasets import load_data
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.notebooks import is_made, run_once
from bcd_fast.prediction.models import load_model
from bcd_fast.scoring.criterion import NO_JUDGE, criterion, why_unfit

LEAST = 4 # runs of the same images that are ranked
WITHOUT = 'no divergence' # in the label of the case whose masks judge the clusters
# files, numbers, and what is so by default
NOT_SAID = 'data.path', 'data.textures', 'data.n_', 'data.kind', 'data.seed', 'data.normalise=auto'
ONE = 'one cluster'
FILE = TOP/'nbs/results/studies/judged.json'


@dataclass
class Made:
    "A run that has been made."
    study: str
    label: str # of the case
    words: list # command line
    folder: Path

    def images(self):
        "The images that it saw, in words: runs of the same can be compared."
        cfg = compose_config(self.words)
        said = [w for w in self.words if w.startswith('data.') and not w.startswith(NOT_SAID)]
        name = Path(cfg.data.path).name if cfg.data.name=='folder' else cfg.data.name
        return ' '.join([name, *said, f'seed {cfg.seed}'])


def runs_of(names, seeds, more, out):
    "The runs that there are, but for those with true masks."
    for name in names:
        unseen = {label: case for label, case in CASES[name].items() if not set(SUPERVISED) & set(case)}
        for label, case in unseen.items():
            for seed in seeds:
                words = words_of(case, seed, *more)
                if is_made(words, out):
                    yield Made(name, label, words, run_once(words, out))


def with_clusters(runs):
    "A run whose clusters can judge, or None."
    return next((r for r in runs if compose_config(r.words).cluster.k!=1), None)


def judged(runs):
    "Runs of the same images -> fit, and a row for each."
    cfg = compose_config(runs[0].words)
    ds, clustered = load_data(cfg.data), with_clusters(runs)
    s1 = load_stage1((clustered or runs[0]).folder/'stage1')
    valid = s1.part(ds, 'valid')
    maskers = [load_model(run.folder/'model')[0] for run in runs]
    why = unfit(runs, maskers, valid) if clustered else ONE
    rows = [scored(run, model, valid, fit=not why) for run, model in zip(runs, maskers)]
    return dict(fit=not why, why=why, rank=rank(rows), runs=rows)


def unfit(runs, maskers, valid):
    "What is against the clusters, by the masks of the training without the divergence."
    judge = next((m for run, m in zip(runs, maskers) if WITHOUT in run.label), None)
    return NO_JUDGE if judge is None else why_unfit(judge, valid)


def scored(run, model, valid, fit):
    "The criterion of a masker, and the IoU of its run."
    found = {k: round(v, 4) for k, v in criterion(model, valid, fit).items()}
    m = json.loads((run.folder/'metrics.json').read_text())
    print(f'seed {m["seed"]} {run.study} {run.label}: IoU {m["iou"]:.3f}', found, flush=True)
    about = {k: m[k] for k in ('seed','platform','torch')}
    return dict(about, study=run.study, label=run.label, iou=round(m['iou'], 4), **found)


def rank(rows):
    "Rank correlation of the criterion with the IoU: 1 is agreement, None where all are alike."
    found = spearmanr([r['loss'] for r in rows], [r['iou'] for r in rows]).statistic
    return None if np.isnan(found) else round(-float(found), 3)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='+', choices=list(CASES), metavar='NAME')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='more words of the command line')
    p.add_argument('--out', default='runs')
    a = p.parse_args()
    by_images = defaultdict(dict)
    for run in runs_of(a.names, a.seeds, a.set, a.out):
        by_images[run.images()].setdefault(run.folder, run) # two studies may share a run
    cases = json.loads(FILE.read_text())['cases'] if FILE.is_file() else {}
    for images, runs in by_images.items():
        if len(runs)>=LEAST:
            cases[images] = judged([*runs.values()])
            print(f'{images}: rank correlation {cases[images]["rank"]}', flush=True)
    about = dict(study='judged', question='Does the criterion without masks follow the IoU?', cases=cases)
    FILE.write_text(json.dumps(about, indent=1)+'\n')


if __name__ == '__main__':
    main()
