"""Run experiments over several seeds and write their metrics to nbs/results/NAME.json, which README and notebooks show.

    python scripts/make_results.py                                    # every row of RESULTS that needs no files
    python scripts/make_results.py sas_cl sas_segmentation --seeds 0 1 2
    python scripts/make_results.py synthetic_segmentation_mnist --set data.path=MNIST_DIR data.textures=TEXTURE_DIR

A run that has been made before with the same settings is found below runs/ and not made again.
"""
import argparse, json
from pathlib import Path

from bcd_fast import environment # noqa: F401 - first: torch reads it when it is loaded
from bcd_fast.core import keep_buffers
from bcd_fast.experiments.results import write_results
from bcd_fast.experiments.notebooks import run_once

TOP = Path(__file__).resolve().parent.parent

# name of the file -> words of the command line; those in NEED_FILES want --set data.path=...
RESULTS = {name: [f'experiment={name}'] for name in (
    'demo', 'autoencoder', 'texture_cl', 'cl', 'sas_cl', 'sas_autoencoder', 'sss_cl', 'sss_ae',
    'synthetic_segmentation', 'sas_segmentation', 'sss_segmentation', 'cub_segmentation')}
BOUND = ['supervised=true']
MANY = ['data.n_objects=10000', 'data.n_backgrounds=10000', 'cluster.k=10'] # as many as in the paper
DSPRITES = ['experiment=synthetic_segmentation', 'data=dsprites', 'trainer=small_objects']
ROCK = ['experiment=sss_segmentation', 'data=regions', 'data.kind=127',
        'data.seed=SEED'] # each seed tests on another quarter of the strips
RESULTS['synthetic_segmentation_dsprites'] = DSPRITES
NEED_FILES = {
    'synthetic_segmentation_mnist':
        ['experiment=synthetic_segmentation', 'data=mnist', *MANY, 'trainer.epochs=24'],
    'synthetic_segmentation_dsprites_brodatz': [*DSPRITES, *MANY, 'trainer.epochs=16'],
    'sas_segmentation_transects': ['experiment=sas_segmentation', 'data=seafloor'],
    'sss_segmentation_regions': ROCK}
RESULTS |= {f'{n}_supervised': [*RESULTS[n], *BOUND] for n in [*RESULTS] if 'segmentation' in n}
NEED_FILES |= {f'{n}_supervised': [*w, *BOUND] for n, w in [*NEED_FILES.items()]}
SHOWN = 'iou', 'ap', 'cluster_nmi', 'seconds_stage1', 'seconds_stage2' # on the screen


def shown(words):
    "The command that a reader can type: names of folders instead of places."
    return 'bcd_train '+' '.join(f'{w.split("=")[0]}=DIR' if '/' in w else w for w in words)


def metrics_of(words, seed, out):
    "What one run of these words says of itself; it is made where it is not there yet."
    folder = run_once([*(w.replace('SEED', str(seed)) for w in words), f'seed={seed}'], out)
    return json.loads((folder/'metrics.json').read_text())


def summary(runs):
    "The metrics that the screen shows, a number for each run."
    return {k: [round(r[k], 3) for r in runs] for k in SHOWN if runs[0][k] is not None}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', default=list(RESULTS), choices=[*RESULTS, *NEED_FILES], metavar='NAME')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='more words of the command line')
    p.add_argument('--out', default='runs')
    return p.parse_args()


def main():
    a = arguments()
    keep_buffers()
    for name in a.names:
        words = [*(RESULTS | NEED_FILES)[name], *a.set]
        runs = [metrics_of(words, s, a.out) for s in a.seeds]
        write_results(TOP/f'nbs/results/{name}.json', f'{shown(words)} seed=SEED', runs)
        print(name, summary(runs), flush=True)


if __name__ == '__main__':
    main()
