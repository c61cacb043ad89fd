"""Score the package, its bound and its peers on whole real pictures: a JSON line for each set, method and seed.

    python scripts/make_real.py --data DIR                         # every set below DIR
    python scripts/make_real.py --data DIR --sets A B --seeds 0 --minutes 1 --own --peers otsu grabcut cam
    python scripts/make_real.py --data DIR --own --peers --anomalib VENV/bin/python # see anomalib_peers.py

A set is a folder with objects/ and backgrounds/ for training, masks/ (of objects/) for the bound, and test_objects/,
test_masks/ and test_backgrounds/ for scores. A training gets a folder of links to objects/ and backgrounds/ alone, the
bound one with masks/ too. FOLDER/real.jsonl grows by a line as soon as a run is scored; what is there is not run again.
FOLDER/real.csv has means over seeds, their standard deviation, and the share of the bound. With --show, some test
pictures of a set whose licence allows it are drawn with the masks of the first seed, as FOLDER/real_SET.png.
"""
import argparse, io, json, multiprocessing, os, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bcd_fast import environment, __version__ # noqa: F401 - first: torch reads it when it is loaded
import numpy as np, pandas as pd, torch
from PIL import Image
from bcd_fast.core import InputError, peak_rss_mb, platform_text, write_whole
from bcd_fast.data.folders import Reading, list_files, object_pixels, read_files, same_channels
from bcd_fast.data.formats import read_pictures
from bcd_fast.drawing.figures import figure_bytes
from bcd_fast.prediction.models import load_model
from bcd_fast.scoring.peers import PEERS, SIDE, ends_of, fit_peer, kept_apart, only_data, sight_of, to_scores
from bcd_fast.scoring.pictures import PictureScores, score_pictures, views_figure
from bcd_fast.commands.eval import Evaluation, PicturePlace, background_files, evaluate_folder, view_of, with_masks

TOP = Path(__file__).resolve().parent.parent
TRAINED, BOUND, TEST = ('objects', 'backgrounds'), 'masks', 'test_'
OWN = dict(package=[], supervised=['supervised=true']) # more words of the command line
ANOMALIB = 'draem', 'student_teacher'
NO_SEED = [n for n in PEERS if n.startswith('otsu') or n == 'grabcut'] # nothing is random: one run is enough
KEPT = ('iou', 'dice', 'best', 'best_threshold', 'ap', 'iou_per_picture', 'area', 'background_masked', 'picture_auroc',
        'pictures', 'backgrounds', 'threshold')
SHOWN = ('iou', 'ap', 'best', 'iou_per_picture', 'background_masked', 'picture_auroc', 'seconds', 'cpu_seconds',
         'peak_rss_mb')
SHARED = 'iou', 'ap' # as shares of the bound
MADE = 'machine', 'torch', 'commit' # what runs were made with
KEYS = 'set', 'method', 'way', 'masks', 'seed' # what tells lines apart: those of them that a line has
DRAWN = dict(objects=12, backgrounds=6) # test pictures, with --show
SHADES = 160 # of a drawn figure: speckle takes much room
HEADINGS = dict(objects='with the object: true masks drawn through, found masks dashed', backgrounds='without')


@dataclass(frozen=True)
class Job:
    "A run that is to be made."
    data: Path # of the set
    method: str # of `OWN`, `PEERS` or `ANOMALIB`
    seed: int
    minutes: float # of training, for peers
    out: Path # of all results
    words: tuple = () # more words for `bcd_train`
    python: str = None # of the environment that anomalib is installed in
    show: bool = False # whether test pictures may be drawn

    @property
    def key(self):
        return self.data.name, self.method, self.seed


@contextmanager
def links(data, names):
    "A folder of the set's name that holds links to some of its folders, and nothing else."
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)/data.name
        folder.mkdir()
        for name in names:
            (folder/name).symlink_to((data/name).resolve(), target_is_directory=True)
        yield folder


def tail_of(path, n=3):
    "The last lines of a log, for a message."
    return ' / '.join(path.read_text(errors='replace').strip().splitlines()[-n:])


def call(command, log):
    "Run a program and keep what it says. Raises `InputError` with its last lines where it fails."
    with open(log, 'w') as f:
        status = subprocess.run(command, stdout=f, stderr=subprocess.STDOUT).returncode
    if status not in (0, 2): # 2: some files were left out, or an error, after which something is missing
        raise InputError(f'{log}: {tail_of(log)}')


def train_package(job, run, folder):
    "Train in a process of its own; the contents of metrics.json."
    words = ['experiment=folder', f"data.path='{folder}'", f'seed={job.seed}', *OWN[job.method], *job.words]
    places = [f"hydra.run.dir='{run}'", f"cache='{run/'cache'}'", 'bar=false']
    call([sys.executable, '-m', 'bcd_fast.train', *words, *places], run/'log.txt')
    if not (run/'metrics.json').is_file():
        raise InputError(f'{run}/log.txt: {tail_of(run/"log.txt")}')
    return json.loads((run/'metrics.json').read_text())


def run_package(job, run):
    "The package with its defaults, or its bound."
    with links(job.data, (*TRAINED, *([BOUND] if job.method == 'supervised' else []))) as folder:
        start = time.perf_counter()
        metrics = train_package(job, run, folder)
        seconds = time.perf_counter()-start
    start = time.perf_counter()
    scores = evaluate_folder(run/'model', job.data, TEST)
    command = ' '.join(['bcd_train experiment=folder data.path=DIR', f'seed={job.seed}', *OWN[job.method], *job.words])
    return scores, dict(seconds=seconds, seconds_test=time.perf_counter()-start, command=command,
                        peak_rss_mb=metrics['peak_rss_mb'])


def piles(folder):
    "The pictures of both piles, of one number of channels: objects, backgrounds."
    found = {what: read_files(list_files(folder/what, what))[0] for what in TRAINED}
    return [[p for _, p in pictures] for pictures in same_channels(found, str(folder), Reading()).values()]


def test_files(data):
    "Picture and mask of each test file; the mask of a background is None."
    pairs, left, _ = with_masks(data, TEST)
    if left:
        raise InputError(left[0])
    return [*pairs, *((p, None) for p in background_files(data, TEST)[0])]


def test_pictures(data):
    "Every test picture with its true mask, or None."
    for path, mask in test_files(data):
        pictures = read_pictures(path)
        masks = read_pictures(mask, channels=1) if mask else [None]*len(pictures)
        for p, m in zip(pictures, masks, strict=True):
            yield p, None if m is None else object_pixels(m, p.name, p.values.shape[1:])


def views_of(run, files, most):
    "Some test files, evenly spread, with true masks and those that a model finds."
    model, about = load_model(run/'model')
    evaluation = Evaluation(model, about, PictureScores(about['threshold']))
    chosen = np.linspace(0, len(files)-1, min(most, len(files))).round().astype(int)
    for path, mask in (files[i] for i in chosen):
        yield view_of(evaluation, PicturePlace(path, 0, 'objects' if mask else 'backgrounds', mask), path.stem)


def draw_pictures(job, run):
    "real_SET.png: some pictures of the test part with their masks."
    files = dict(objects=[f for f in test_files(job.data) if f[1]],
                 backgrounds=[f for f in test_files(job.data) if not f[1]])
    rows = [(HEADINGS[pile], list(views_of(run, files[pile], DRAWN[pile]))) for pile in files]
    drawn, few = Image.open(io.BytesIO(figure_bytes(views_figure(rows)))), io.BytesIO()
    how = dict(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    drawn.convert('RGB').quantize(SHADES, **how).save(few, 'PNG', optimize=True)
    write_whole(job.out/f'real_{job.data.name}.png', few.getvalue())


def run_peer(job, run):
    "One of `PEERS`."
    with links(job.data, TRAINED) as folder:
        objects, backgrounds = piles(folder)
    start = time.perf_counter()
    predict = fit_peer(job.method, objects, backgrounds, 60*job.minutes, job.seed)
    fitted = time.perf_counter()
    scores = score_pictures((predict(p), truth) for p, truth in test_pictures(job.data))
    times = dict(seconds=fitted-start, seconds_test=time.perf_counter()-fitted)
    return scores, times | dict(command=f'fit_peer {job.method} seconds={60*job.minutes:g} seed={job.seed}',
                                peak_rss_mb=peak_rss_mb())


def save_colours(sight, pictures, folder):
    "Pictures as three colours of 8 bits, for programs that know nothing else; their files."
    folder.mkdir(parents=True)
    for i, p in enumerate(pictures):
        x = sight(p)
        x = x[:3] if len(x) >= 3 else np.repeat(x[:1], 3, 0)
        Image.fromarray((255*x).round().astype(np.uint8).transpose(1, 2, 0)).save(folder/f'{i:06}.png')


def maps_in(folder):
    "What a program wrote for the pictures of `save_colours`, in their order."
    return (np.load(p) for p in sorted(folder.glob('*.npy')))


def anomalib_scores(job, run):
    "Scores in [0,1] of each test picture; those of distances begin where kept backgrounds end."
    raws = [m.ravel() for m in maps_in(run/'maps/kept')]
    ends = ends_of(np.concatenate(raws)) if job.method == 'student_teacher' else None
    for (p, truth), raw in zip(test_pictures(job.data), maps_in(run/'maps/test'), strict=True):
        yield only_data(to_scores(raw, ends) if ends else raw.clip(0, 1), p), truth


def run_anomalib(job, run):
    "One of `ANOMALIB`, in its own environment, from backgrounds alone."
    with links(job.data, TRAINED) as folder:
        objects, backgrounds = piles(folder)
    sight, (rest, kept) = sight_of(objects, backgrounds), kept_apart(backgrounds, job.seed)
    for name, pictures in dict(train=rest, kept=kept, test=[p for p, _ in test_pictures(job.data)]).items():
        save_colours(sight, pictures, run/name)
    words = ['--method', job.method, '--train', run/'train', '--maps', run/'kept', run/'test', '--out', run/'maps',
             '--seconds', 60*job.minutes, '--seed', job.seed, '--size', SIDE]
    call([*map(str, [job.python, TOP/'scripts/anomalib_peers.py', *words])], run/'log.txt')
    if not (run/'maps/about.json').is_file():
        raise InputError(f'{run}/log.txt: {tail_of(run/"log.txt")}')
    about = json.loads((run/'maps/about.json').read_text())
    scores = score_pictures(anomalib_scores(job, run))
    for name in ('train', 'kept', 'test', 'maps'):
        shutil.rmtree(run/name)
    return scores, about | dict(command=' '.join(['anomalib_peers.py', *map(str, words[:2]), *map(str, words[-6:])]))


def commit():
    "The commit of the code, with a + where files have changed since."
    git = ['git', '-C', str(TOP)]
    done = subprocess.run([*git, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True)
    changed = subprocess.run([*git, 'status', '--porcelain', '-uno'], capture_output=True, text=True).stdout
    return done.stdout.strip()+('+' if changed else '')


def make(job):
    "Make a run and score it: its line."
    run = job.out/'runs'/job.data.name/f'{job.method}_{job.seed}'
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    how = run_package if job.method in OWN else run_anomalib if job.method in ANOMALIB else run_peer
    scores, cost = how(job, run)
    if job.show and job.method == 'package' and not job.seed:
        draw_pictures(job, run)
    about = dict(set=job.data.name, method=job.method, seed=job.seed, minutes=job.minutes)
    cost |= dict(cpu_seconds=sum(os.times()[:4])) # of this process and its programs: what the machine had to give
    machine = dict(version=__version__, commit=commit(), torch=torch.__version__, machine=platform_text(),
                   when=time.strftime('%Y-%m-%d %H:%M'))
    return about | {k: scores[k] for k in KEPT} | cost | machine


def in_own_process(job):
    "As `make`, where memory is counted for this run alone."
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(make, job).result()


def rows_in(path):
    "The lines that are there; one that was cut off is left out."
    lines = path.read_text().split('\n')[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def append(path, row):
    "One line more, after a line that was cut off perhaps."
    text = ''.join(json.dumps(r)+'\n' for r in [*rows_in(path), row])
    write_whole(path, text.encode())


def summary(rows):
    "Means over seeds, standard deviations (none of one seed), shares of the bound; what they were made with."
    runs = pd.DataFrame(rows).groupby(['set', 'method'], sort=False)
    of = runs[list(SHOWN)]
    t = of.mean().assign(seeds=of.size()).join(runs[list(MADE)].agg(lambda v: ' / '.join(sorted(set(v)))))
    t = t.join(of.std().add_suffix('_sd'))
    methods = t.index.get_level_values('method')
    bound = t[methods == 'supervised'].droplevel('method')
    for k in SHARED:
        t[f'{k}_of_bound'] = t[k]/bound[k].reindex(t.index.get_level_values('set')).to_numpy()
    first = ['seeds', *(c for k in SHARED for c in (k, f'{k}_sd', f'{k}_of_bound'))]
    return t[[*first, *(c for c in t if c not in first)]]


def write_summary(out):
    "real.csv from real.jsonl."
    table = summary(rows_in(out/'real.jsonl'))
    write_whole(out/'real.csv', table.to_csv(float_format='%.4f').encode())
    return table


def jobs(a):
    "All runs that are asked for: the first seed of every set first."
    sets = [Path(a.data)/s for s in a.sets or sorted(p.parent.name for p in Path(a.data).glob('*/test_objects'))]
    methods = [*a.own, *a.peers, *(ANOMALIB if a.anomalib else ())]
    for data in sets:
        if not (data/'test_objects').is_dir():
            raise InputError(f'{data} is no set: expected test_objects/, test_masks/, objects/ and backgrounds/ in it.')
    more = dict(minutes=a.minutes, out=Path(a.out).resolve(), words=tuple(a.set), python=a.anomalib)
    return [Job(d, m, s, **more, show=d.name in a.show) for i, s in enumerate(a.seeds) for d in sets for m in methods
            if not i or m not in NO_SEED]


def arguments(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True, metavar='DIR', help='folder of sets')
    p.add_argument('--sets', nargs='+', metavar='NAME', help='some of them (default: all)')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--minutes', type=float, default=5., help='of training of each peer (default: 5)')
    p.add_argument('--out', default='runs/real', metavar='FOLDER')
    p.add_argument('--own', nargs='*', default=list(OWN), choices=list(OWN), help='without a name: none')
    p.add_argument('--peers', nargs='*', default=list(PEERS), choices=list(PEERS), help='without a name: none')
    p.add_argument('--anomalib', metavar='PYTHON', help='of an environment with anomalib: its two models too')
    p.add_argument('--show', nargs='*', default=[], metavar='NAME', help='sets of which test pictures may be drawn')
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='more words for bcd_train')
    return p.parse_args(words)


def make_all(todo, path, shown, run, after):
    "A line of `path` for each job that has none; how many failed, which are tried again the next time."
    done, failed = {tuple(r[k] for k in KEYS if k in r) for r in rows_in(path)}, 0
    for job in todo:
        if job.key in done:
            continue
        try:
            row = run(job)
        except (InputError, OSError, RuntimeError, BrokenProcessPool) as e:
            print(*job.key, f'failed: {e}', file=sys.stderr, flush=True)
            failed += 1
            continue
        append(path, row)
        print(*job.key, ' '.join(f'{k} {row[k]:.3f}' for k in shown if row[k] is not None), flush=True)
        after()
    return failed


def main(words=None):
    a = arguments(words)
    out = Path(a.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        todo = jobs(a)
    except InputError as e:
        sys.exit(f'error: {e}')
    failed = make_all(todo, out/'real.jsonl', SHOWN, in_own_process, lambda: write_summary(out))
    if rows_in(out/'real.jsonl'):
        print(write_summary(out)[['seeds', 'iou', 'iou_of_bound', 'ap', 'ap_of_bound']].round(3).to_string())
    sys.exit(2 if failed else 0)


if __name__ == '__main__':
    main()
