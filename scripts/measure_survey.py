"""Measure what a survey costs: whole processes on made data, a row each in nbs/results/survey/survey.json.

    python scripts/measure_survey.py                     # everything; hours on two cores, and 5 GB below --work
    python scripts/measure_survey.py --only scene        # start, waterfall, archive, files or scene
    python scripts/measure_survey.py --quick --out FILE  # tiny sizes, to see that it works

Each row is one command in a process of its own under GNU time, which tells elapsed seconds, processor seconds and the
peak of resident memory, all of it with the imports. Rows that are there are not measured again: remove a row, or the
file, to do so. Scenes and pictures are a made ground, noise on waves, with one bright ellipse in each square of 200
pixels; the maskers, `fast` and `even` of the usual size, learn to see it from true masks in a few hundred steps, so
that about the right number of regions is there to be written. `even` sees pictures four times mirrored, and refined, as
models of whole pictures do.
"""
import argparse, json, os, re, subprocess, sys, tempfile, time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bcd_fast import environment, __version__ # noqa: F401 - first: torch reads it when it is loaded
import numpy as np, torch
from PIL import Image
from bcd_fast.core import platform_text, write_whole
from bcd_fast.masker.maskers import make_masker
from bcd_fast.masker.refinement import Finish
from bcd_fast.prediction.models import Threshold, save_model
from bcd_fast.prediction.predict import ANNOTATIONS, RECORD
from bcd_fast.prediction.tiles import write_tiff
from make_real import commit
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from xtf_files import xtf_head, xtf_ping # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent/'nbs/results/survey/survey.json'
CELL = 200 # pixels of a side of a square with one object: 10,000 objects on 20,000 x 20,000 pixels
UTM = [(33550, 'd', 3, (.1, .1, 0.), True), (33922, 'd', 6, (0., 0., 0., 5e5, 5.3e6, 0.), True),
       (34735, 'H', 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True)] # 10 cm, zone 33 north
MASKERS = dict(fast=Finish(), even=Finish(mirrored=True, refined=True))
COMMAND = 'import sys; from bcd_fast import environment as e; sys.exit(getattr(e, sys.argv.pop(1))())'
ALL = 'geojson', 'coco', 'overlay', 'gpkg'


@dataclass(frozen=True)
class Sizes:
    "How much is measured."
    scenes: tuple = ((5000, 'fast'), (10000, 'fast'), (20000, 'fast'), (5000, 'even')) # side, masker
    archive: tuple = (200, 1024) # pictures, side
    files: tuple = (2000, 20000) # small pictures
    pings: tuple = (12500, 50000) # of 4,000 samples of 16 bits
    steps: int = 300 # of a masker


QUICK = Sizes(((400, 'fast'), (600, 'fast'), (400, 'even')), (4, 400), (6, 12), (20, 60), 20)


# made data

def ground(seed, height, width):
    "Rows of a made ground, uint8."
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(width, dtype=np.float32)/37)*12+np.sin(np.arange(height, dtype=np.float32)/23)[:, None]*6
    a = rng.standard_normal((height, width), np.float32)*11+waves+70
    return a.clip(0, 255).astype(np.uint8)


def middles(seed, n):
    "The middles of the objects of a row of squares, and their half axes: (n,) each, rows and columns."
    rng = np.random.default_rng([*seed, 1])
    y, x = rng.integers(30, CELL-30, (2, n))
    return y, x+CELL*np.arange(n), *rng.integers(5, 14, (2, n))


def strip(seed, width):
    "A row of squares, uint8, and where its objects are, bool."
    a, there = ground(seed, CELL, width), np.zeros((CELL, width), bool)
    for y, x, h, w in zip(*middles(seed, width//CELL)):
        i, j = np.ogrid[-h:h+1, -w:w+1]
        there[y-h:y+h+1, x-w:x+w+1] |= (i/h)**2+(j/w)**2 <= 1
    return np.where(there, np.minimum(a, 165)+90, a).astype(np.uint8), there


def picture(seed, side):
    "A whole picture, its sides multiples of `CELL` and what is left of it: (side, side) uint8, bool."
    n = -(-side//CELL)
    a, there = zip(*(strip([*seed, i], n*CELL) for i in range(n)))
    return np.concatenate(a)[:side, :side], np.concatenate(there)[:side, :side]


def make_scene(path, side):
    "A GeoTIFF of any size, made row of squares by row of squares."
    bands = ((i*CELL, strip([7, i], side)[0]) for i in range(side//CELL))
    write_tiff(path, bands, (side, side), lambda a: a, np.uint8, extratags=UTM)


def make_pictures(folder, n, side):
    "An archive of PNG files."
    folder.mkdir()
    for i in range(n):
        Image.fromarray(picture([8, i], side)[0]).save(folder/f'{i:06}.png', compress_level=1)


def make_line(path, pings):
    "An XTF file of speckle, two sides of 2,000 samples a ping."
    rng = np.random.default_rng(9)
    with open(path, 'wb') as f:
        f.write(xtf_head())
        for i in range(pings):
            sides = [rng.integers(0, 2**14, 2000, dtype=np.uint16) for _ in range(2)]
            f.write(xtf_ping(sides, i, at=(11.5, 54+i*1e-6)))


@cache
def trained(masker, steps):
    "A masker of the usual size that has learned the made objects from true masks."
    torch.manual_seed(0)
    model, side = make_masker(masker), 2*CELL
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for i in range(steps):
        x, m = zip(*(picture([9, i, j], side) for j in range(2)))
        x, m = (torch.as_tensor(np.stack(a)[:, None]).float() for a in (x, m))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x/255), m)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def model_in(work, sizes, masker='fast'):
    "The folder of a model."
    model = trained(masker, sizes.steps)
    return save_model(work/'model', model, CELL, {}, Threshold(.5, finish=MASKERS[masker]))


# whole processes

class Process:
    "A command under GNU time, on some of the cores."
    def __init__(self, words, cores):
        self.words, self.cores = [str(w) for w in words], cores
        self.report = tempfile.NamedTemporaryFile('r')
        start = ['taskset', '-c', ','.join(map(str, cores)), '/usr/bin/time', '-v', '-o', self.report.name]
        env = os.environ | dict(OMP_NUM_THREADS=str(len(cores)), PYTHONWARNINGS='ignore')
        python = [sys.executable, '-c', COMMAND]
        self.popen = subprocess.Popen([*start, *python, *self.words], stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True, env=env)

    def command(self):
        "As it is typed, without places of this machine."
        return ' '.join(Path(w).name if w.startswith('/') else w for w in self.words)

    def cost(self):
        "Wait for the end: what was used. Raises `RuntimeError` where it failed."
        said = self.popen.communicate()[0]
        if self.popen.returncode:
            raise RuntimeError(f'{self.command()}: {said[-500:]}')
        told = dict(line.strip().rsplit(': ', 1) for line in self.report if ': ' in line)
        clock = [float(n) for n in told['Elapsed (wall clock) time (h:mm:ss or m:ss)'].split(':')]
        seconds = sum(n*60**i for i, n in enumerate(reversed(clock)))
        within = re.search(r'results in .*?, ([\d.]+) s,', said)
        row = dict(command=self.command(), cores=len(self.cores), seconds=seconds,
                   cpu_seconds=float(told['User time (seconds)'])+float(told['System time (seconds)']),
                   peak_mb=int(told['Maximum resident set size (kbytes)'])/1024)
        return row | (dict(seconds_within=float(within[1])) if within else {})


def call(*words, cores=tuple(range(os.cpu_count()))):
    "Run one command and wait."
    return Process(words, cores).cost()


def together(*commands):
    "Run commands side by side, each on a core of its own: their costs, and the seconds until the last has ended."
    start = time.perf_counter()
    running = [Process(words, [i]) for i, words in enumerate(commands)]
    costs = [p.cost() for p in running]
    return costs, time.perf_counter()-start


# measurements: each yields rows

def bytes_in(folder):
    "Bytes and number of files by the end of their names."
    found = {}
    for p in Path(folder).rglob('*'):
        if p.is_file() and not p.name.startswith('.'):
            known = p.name in (ANNOTATIONS, RECORD) or p.name.startswith(('manifest.', 'annotations.'))
            key = p.name if known else re.sub(r'^[^.]*', '', p.name)
            n, size = found.get(key, (0, 0))
            found[key] = n+1, size+p.stat().st_size
    return dict(files={k: n for k, (n, _) in sorted(found.items())},
                bytes={k: size for k, (_, size) in sorted(found.items())})


def hits(annotations, side):
    "How many objects of a made scene have a region around their middle."
    there = np.zeros((side//CELL, side//CELL), bool)
    rows = [middles([7, i], side//CELL) for i in range(side//CELL)]
    for x, y, w, h in (a['bbox'] for a in annotations):
        i, j = int((y+h/2)//CELL), int((x+w/2)//CELL)
        dy, dx = rows[i][0][j]+CELL*i-y, rows[i][1][j]-x
        there[i, j] |= 0 <= dy < h and 0 <= dx < w
    return int(there.sum())


def scene(work, sizes, side, masker):
    "A scene as one file: probabilities alone, then all that is made of them."
    path, model = work/'scene.tif', model_in(work, sizes, masker)
    make_scene(path, side)
    about = dict(side=side, masker=masker, megapixels=side**2/1e6, bytes_in=path.stat().st_size)
    for name, write in (('probabilities', ['probabilities']), ('all', ALL)):
        out = work/f'out_{name}'
        row = about | call('bcd_predict', model, path, '--out', out, '--write', *write) | bytes_in(out)
        row |= dict(what=f'scene {name}', megapixels_per_s=about['megapixels']/row['seconds'])
        if name == 'all':
            found = json.loads((out/ANNOTATIONS).read_text())['annotations']
            row |= dict(objects=(side//CELL)**2, regions=len(found), objects_hit=hits(found, side))
        yield row


def archive(work, sizes):
    "Many pictures: in one run on a core, in one on all, in two parts one after the other and at once, joined."
    model, (n, side) = model_in(work, sizes), sizes.archive
    make_pictures(work/'in', n, side)
    about = dict(pictures=n, side=side, masker='fast', megapixels=n*side**2/1e6,
                 bytes_in=sum(p.stat().st_size for p in (work/'in').iterdir()))
    given = '--write', 'masks', 'geojson', 'coco'
    words = lambda out, *more: ['bcd_predict', model, work/'in', '--out', work/out, *given, *more]
    rate = lambda seconds: dict(seconds=seconds, megapixels_per_s=about['megapixels']/seconds)
    one, every = call(*words('one'), cores=[0]), call(*words('every'))
    for what, row in (('archive on one core', one), ('archive on all cores', every)):
        yield about | row | rate(row['seconds']) | dict(what=what) | bytes_in(work/'one')
    turns = [call(*words('turns', '--part', f'{i}/2'), cores=[0]) for i in (1, 2)]
    yield about | summed(turns) | rate(sum(r['seconds'] for r in turns)) | dict(what='archive in two parts in turn')
    costs, seconds = together(words('parts', '--part', '1/2'), words('parts', '--part', '2/2'))
    yield about | summed(costs) | rate(seconds) | dict(what='archive in two parts at once',
                                                       over_one=one['seconds']/seconds)
    merged = call('bcd_predict', '--merge', work/'parts', cores=[0])
    same = (work/'parts'/ANNOTATIONS).read_bytes() == (work/'one'/ANNOTATIONS).read_bytes()
    yield about | merged | dict(what='archive joined', same=same) | bytes_in(work/'parts')


def summed(costs):
    "Several processes as one row."
    return dict(command='; '.join(c['command'] for c in costs), cores=sum(c['cores'] for c in costs),
                cpu_seconds=sum(c['cpu_seconds'] for c in costs), peak_mb=max(c['peak_mb'] for c in costs))


def files(work, sizes, n):
    "Small pictures: what every file costs, what a part takes to look through all of them, and what joining takes."
    make_pictures(work/'in', n, 64)
    words = ['bcd_predict', model_in(work, sizes), work/'in', '--write', 'masks', 'coco', '--out']
    about = dict(pictures=n, side=64, masker='fast', megapixels=n*64**2/1e6)
    yield about | call(*words, work/'few', '--part', f'1/{10*n}', cores=[0]) | dict(what='files looked through')
    costs, seconds = together(*([*words, work/'out', '--part', f'{i}/2'] for i in (1, 2)))
    yield about | summed(costs) | dict(what='files in two parts at once', seconds=seconds)
    merged = call('bcd_predict', '--merge', work/'out', cores=[0])
    yield about | merged | dict(what='files joined') | bytes_in(work/'out')


def start(work, sizes):
    "What a process takes before it does anything."
    yield call('bcd_predict', '--help', cores=[0]) | dict(what='start')


def waterfall(work, sizes, pings):
    "A line of raw side-scan data as pictures."
    path = work/'line.xtf'
    make_line(path, pings)
    row = call('bcd_waterfall', path, '--out', work/'pictures', cores=[0])
    size = path.stat().st_size
    yield row | bytes_in(work/'pictures') | dict(
        what='waterfall', pings=pings, bytes_in=size, megapixels=pings*4000/1e6,
        mb_per_s=size/1e6/row['seconds'], pings_per_s=pings/row['seconds'])


def groups(sizes):
    "What is measured: name -> a function of a folder."
    found = dict(start=(start,)) | {f'waterfall {n}': (waterfall, n) for n in sizes.pings}
    found |= dict(archive=(archive,)) | {f'files {n}': (files, n) for n in sizes.files}
    return found | {f'scene {side} {masker}': (scene, side, masker) for side, masker in sizes.scenes}


# the file

def read(path):
    "The rows that are there."
    return json.loads(path.read_text())['rows'] if path.is_file() else []


def save(path, rows, sizes):
    "All rows."
    weights = f'maskers of the usual size, {sizes.steps} steps from true masks of the same made ground'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(dict(command='python scripts/measure_survey.py', weights=weights, rows=rows),
                                  indent=1)+'\n').encode())


def arguments(words):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', metavar='NAME', default=['start', 'waterfall', 'archive', 'files', 'scene'],
                   help='groups whose name begins so, such as scene, or "scene 5000"')
    p.add_argument('--quick', action='store_true', help='tiny sizes; --out must be given')
    p.add_argument('--out', type=Path, metavar='FILE', help=f'default: {RESULTS.name} of the results')
    p.add_argument('--work', metavar='DIR', help='folder for what is made (default: a temporary one)')
    a = p.parse_args(words)
    if a.quick and a.out is None:
        p.error('--quick wants --out: its rows do not belong to the results.')
    return a


def main(words=None):
    a = arguments(words)
    path, sizes = a.out or RESULTS, QUICK if a.quick else Sizes()
    measure_all(path, sizes, a)


def measure_all(path, sizes, a):
    "Add the rows that are not there; quick ones make room for others of their kind."
    about = dict(machine=platform_text(), torch=torch.__version__, version=__version__, commit=commit(), quick=a.quick)
    for name, (measure, *args) in groups(sizes).items():
        rows, kind = read(path), name.split()[0]
        rows = [r for r in rows if a.quick or not (r['quick'] and r['group'].split()[0] == kind)]
        if not name.startswith(tuple(a.only)) or any(r['group'] == name for r in rows):
            continue
        with tempfile.TemporaryDirectory(dir=a.work) as work:
            when = dict(when=time.strftime('%Y-%m-%d %H:%M'))
            for row in measure(Path(work), sizes, *args):
                rows.append(dict(group=name) | row | about | when)
                print(name, row['what'], *(f'{k} {row[k]:.4g}' for k in ('seconds', 'cpu_seconds', 'peak_mb')),
                      flush=True)
        save(path, rows, sizes)


if __name__ == '__main__':
    main()
