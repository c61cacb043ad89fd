"""Kill trainings and predictions at random moments, go on, and compare with what was left alone.

    python scripts/kill_campaign.py            # 20 kills, about 15 minutes on two cores
    python scripts/kill_campaign.py --kills 4 --only whole predict --seed 1

A line for each kill: what was killed, when, how it went on, and whether the weights, the history and the masks are the
same to the last byte, nobody is left behind and no half of a file. Ends with 1 where something differs.
"""
import argparse, csv, os, random, shutil, signal, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHORT = ['trainer.epochs=4', 'trainer.steps=20', 'trainer.bs=8', 'trainer.precision=float32', 'model.width=4',
         'bar=false', 'hydra.run.dir=run']
SQUARES = ['experiment=demo', 'data.n_objects=300', 'data.n_backgrounds=300', 'data.size=32', 'encoder.epochs=1',
           'encoder.steps=20', 'cluster.k=3', 'cache=cache', *SHORT]
TRAININGS = dict(fast=SQUARES, processes=[*SQUARES, 'trainer.processes=2'],
                 whole=['experiment=folder', 'recipe=whole', 'data.path=../pictures', 'trainer.paste=4', *SHORT])
KINDS = [*TRAININGS, 'predict']
PREDICT = 'import sys; from bcd_fast.commands.predict import bcd_predict; sys.exit(bcd_predict(sys.argv[1:]))'


def write_pictures(folder, n=24):
    "Discs on noise, and noise."
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:64, :72]
    for what in ('objects', 'backgrounds'):
        (folder/what).mkdir(parents=True)
        for i in range(n):
            disc = (y-rng.integers(12, 52))**2+(x-rng.integers(12, 60))**2 < 80
            gray = 90+20*rng.standard_normal(disc.shape)+90*disc*(what == 'objects')
            Image.fromarray(gray.clip(0, 255).astype(np.uint8)).save(folder/what/f'{i:02}.png')


def start(kind, folder, resume=False):
    "A process under way, in a session of its own, so that whoever it leaves behind can be found."
    if kind == 'predict':
        words = ['-c', PREDICT, '../whole/run/model', '../pictures/objects', '--out', 'run', '--write', 'masks',
                 'probabilities']
    else:
        words = ['-m', 'bcd_fast.train', *(['--resume', 'run'] if resume else TRAININGS[kind])]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    return subprocess.Popen([sys.executable, '-W', 'ignore', *words], cwd=folder, **pipes)


def finish(process):
    "Wait; what it said last, or nothing where all went well."
    said = process.communicate()[1].strip()
    return said[-300:] or f'status {process.returncode}' if process.returncode else ''


def result(kind, folder):
    "What must be the same: name -> bytes, or the numbers of the history but times."
    run = folder/'run'
    if kind == 'predict':
        return {p.name: p.read_bytes() for p in run.iterdir() if p.suffix == '.png'}
    with open(run/'history.csv') as f:
        rows = [{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(f)]
    return dict(weights=(run/'model/model.safetensors').read_bytes(), history=rows)


def left_behind(process, folder):
    "Processes that have outlived theirs, and halves of files."
    end = time.monotonic()+10
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        return 'processes'
    halves = [p.name for p in folder.rglob('.*') if p.name != '.lock']
    return ' '.join(halves)


def go_on(kind, folder):
    "What is left to do, and how it went: '' where well."
    run = folder/'run'
    if (run/'metrics.json').is_file():
        return 'was done', ''
    resume = kind != 'predict' and (run/'config.yaml').is_file()
    process = start(kind, folder, resume)
    said = finish(process)
    return 'gone on' if resume or kind == 'predict' else 'begun anew', said or left_behind(process, folder)


@dataclass
class Undisturbed:
    "What a kind gives when it is left alone."
    seconds: float
    wanted: dict


def leave_alone(kind, top):
    (top/kind).mkdir()
    begun = time.monotonic()
    said = finish(start(kind, top/kind))
    if said:
        sys.exit(f'{kind}: {said}')
    return Undisturbed(time.monotonic()-begun, result(kind, top/kind))


def kill_once(kind, alone, share, top):
    "Kill after a share of the time, go on, compare: a line of the table."
    folder = top/'killed'
    folder.mkdir()
    process = start(kind, folder)
    time.sleep(share*alone.seconds)
    process.kill()
    process.communicate()
    wrong = 'processes' if left_behind(process, folder/'none') else ''
    how, said = go_on(kind, folder)
    wrong = wrong or said or ('' if result(kind, folder) == alone.wanted else 'differs')
    shutil.rmtree(folder)
    return f'{kind:10} {share*alone.seconds:6.1f} s  {how:10}  {wrong or "the same"}', bool(wrong)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=20)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', nargs='+', choices=KINDS, default=KINDS)
    a = p.parse_args()
    rng, kinds = random.Random(a.seed), a.only
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    with tempfile.TemporaryDirectory() as top:
        top = Path(top)
        write_pictures(top/'pictures')
        needed = {*kinds, *(['whole'] if 'predict' in kinds else [])}
        alone = {kind: leave_alone(kind, top) for kind in KINDS if kind in needed}
        wrong = 0
        for i in range(a.kills):
            kind = kinds[i % len(kinds)]
            line, bad = kill_once(kind, alone[kind], rng.uniform(.3, 1), top)
            print(line, flush=True)
            wrong += bad
    print(f'{a.kills-wrong} of {a.kills} the same')
    return int(wrong > 0)


if __name__ == '__main__':
    sys.exit(main())
