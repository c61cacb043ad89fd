"""Score methods without training on the test parts of the experiments and write nbs/results/studies/baselines.json.

    python scripts/make_baselines.py                         # the experiments that need no files
    python scripts/make_baselines.py synthetic_segmentation_mnist --set data.path=MNIST_DIR data.textures=TEXTURE_DIR

Rows of experiments that are not named stay as they are in the file.
"""
import argparse, json

from bcd_fast.core import platform_text
from bcd_fast.data.datasets import load_data
from bcd_fast.scoring.baselines import baseline_scores
from bcd_fast.experiments.catalogue import compose_config
from make_results import NEED_FILES, RESULTS, TOP, shown

FILE = TOP/'nbs/results/studies/baselines.json'
SCORED = [n for n in RESULTS | NEED_FILES if 'segmentation' in n and 'supervised' not in n]
NAMES = ', '.join(SCORED)
TEST = '2' # where the seed says what is the test: one with much of the object


def score(name, more):
    "The table of an experiment's test part, and what the file says of it; `more`: more words of the command line."
    words = [*(w.replace('SEED', TEST) for w in (RESULTS | NEED_FILES)[name]), *more]
    test = load_data(compose_config(words).data).part('test')[0]
    table = baseline_scores(test.images, test.masks).round(4).reset_index()
    about = dict(data=shown(words), n_test=len(test), machine=platform_text(), rows=table.to_dict('records'))
    return table, about


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', default=[n for n in SCORED if n in RESULTS], metavar='NAME', help=NAMES)
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='more words of the command line')
    return p.parse_args()


def main():
    a = arguments()
    found = json.loads(FILE.read_text()) if FILE.is_file() else {}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    for name in a.names:
        table, found[name] = score(name, a.set)
        print(name, table.to_string(), sep='\n', flush=True)
        FILE.write_text(json.dumps(found, indent=1)+'\n')


if __name__ == '__main__':
    main()
