"""Ctrl-C, SIGTERM and SIGHUP: one sentence, the status that shells expect, and work that goes on where it was."""
import json, os, signal, subprocess, sys, time

import numpy as np, pytest
from PIL import Image
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from conftest import posix

pytestmark = posix

SLEEPS = """
import sys, time
from bcd_fast.core import attempt
def work():
    print('begun', flush=True)
    time.sleep(60)
sys.exit(attempt(work, stopped='Go on.'))
"""
SHARES = """
import multiprocessing, sys, time
from bcd_fast.core import attempt, for_us_alone
def work():
    with for_us_alone():
        workers = [multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,)) for _ in range(3)]
        for w in workers:
            w.start()
    print('begun', flush=True)
    workers[0].join()
sys.exit(attempt(work))
"""
COMMAND = "import sys; from bcd_fast.environment import {name}; print('begun', flush=True); sys.exit({name}())"


def begin(code, *words, cwd=None, **more):
    "Python in a session of its own."
    command = [sys.executable, '-W', 'ignore', '-c', code, *map(str, words)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=cwd, start_new_session=True, **pipes, **more)


def wait_for(p, word):
    "Until a process prints a line with it."
    lines = []
    for line in p.stdout:
        lines.append(line)
        if word in line:
            return
    raise AssertionError((lines, p.stderr.read()))


def ended(p, seconds=60):
    "Exit status, standard error."
    _, err = p.communicate(timeout=seconds)
    return p.returncode, err


@pytest.mark.parametrize('name, status, what', [
    ('SIGINT', 130, 'the keyboard'),
    ('SIGTERM', 143, 'SIGTERM'),
    ('SIGHUP', 129, 'SIGHUP')])
def test_one_sentence(name, status, what):
    p = begin(SLEEPS)
    wait_for(p, 'begun')
    p.send_signal(getattr(signal, name))
    assert ended(p) == (status, f'stopped by {what}. Go on.\n')


def test_nohup():
    "A signal that was to be ignored stays so."
    p = begin(SLEEPS, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(p, 'begun')
    p.send_signal(signal.SIGHUP)
    time.sleep(.2)
    assert p.poll() is None
    p.send_signal(signal.SIGTERM)
    assert ended(p) == (143, 'stopped by SIGTERM. Go on.\n')


@pytest.mark.parametrize('pause', [0, 1]) # seconds: the workers are being started, or at work
def test_workers_say_nothing(pause):
    "A terminal sends Ctrl-C to all processes."
    p = begin(SHARES)
    wait_for(p, 'begun')
    time.sleep(pause)
    os.killpg(p.pid, signal.SIGINT)
    assert ended(p) == (130, 'stopped by the keyboard.\n')


def with_ctrl_c():
    "Where these tests run in the background, Ctrl-C would be ignored."
    signal.signal(signal.SIGINT, signal.default_int_handler)


def without_ctrl_c():
    "As in a script that ends a line with &."
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize('name, number, said', [
    ('bcd_train', 2, 'the keyboard'), ('bcd_check', 2, 'the keyboard'), ('bcd_train', 15, 'SIGTERM'),
    ('bcd_predict', 1, 'SIGHUP')])
def test_while_it_is_imported(name, number, said):
    p = begin(COMMAND.format(name=name), preexec_fn=with_ctrl_c)
    wait_for(p, 'begun')
    time.sleep(.3)
    p.send_signal(number)
    assert ended(p) == (128+number, f'stopped by {said}.\n')


def test_nobody_reads():
    "As with | head: no traceback, and nothing from Python while it ends."
    p = begin("import sys; from bcd_fast.core import attempt; sys.exit(attempt(lambda: print('a'*9) or 0))")
    p.stdout.close()
    err = p.stderr.read()
    assert (p.wait(60), err) == (141, '')


def fill(folder, n, size):
    "A folder of pictures."
    folder.mkdir(parents=True)
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 256, size).astype(np.uint8)
        Image.fromarray(noise).save(folder/f'{i}.png', compress_level=1)


@pytest.mark.slow
def test_training(tmp_path):
    "A training on whole pictures, in a folder whose name means much to Hydra."
    data = tmp_path/"Grün [old], (2024) #1 {a}=$HOME ${x} 'b'"
    for what in ('objects', 'backgrounds'):
        fill(data/what, 12, (32, 32))
    words = ['data=folder', f'data.path={data}', 'out=a b, c', 'model.width=4', 'trainer.epochs=300', 'trainer.steps=4',
             'trainer.bs=2', 'bar=false']
    p = begin(COMMAND.format(name='bcd_train'), *words, cwd=tmp_path)
    wait_for(p, 'begun')
    folder = tmp_path/'a b, c/folder'
    while not list(folder.glob('*/checkpoint.safetensors')) and p.poll() is None:
        time.sleep(.1)
    p.send_signal(signal.SIGTERM)
    status, err = ended(p)
    run, = folder.iterdir()
    assert status == 143, err
    assert err.splitlines()[-1] == f"stopped by SIGTERM. Go on with: bcd_train --resume '{run}'"
    p = begin(COMMAND.format(name='bcd_train'), '--resume', run, cwd=tmp_path, preexec_fn=without_ctrl_c)
    wait_for(p, 'training will take')
    before = (run/'checkpoint.safetensors').stat().st_mtime_ns
    while (run/'checkpoint.safetensors').stat().st_mtime_ns == before and p.poll() is None:
        time.sleep(.02)
    p.send_signal(signal.SIGINT)
    time.sleep(.5)
    assert p.poll() is None
    p.send_signal(signal.SIGTERM)
    assert ended(p)[0] == 143


def test_prediction(tmp_path, call):
    "What is finished is kept."
    masker = make_masker('small', 4, 1)
    model = save_model(tmp_path/'model', masker, 64, dict(k=2, assign='robust', backgrounds=[3, 4]))
    fill(tmp_path/'images', 12, (1100, 1100))
    words = [model, tmp_path/'images', '--out', tmp_path/'masks']
    p = begin(COMMAND.format(name='bcd_predict'), *words)
    while len(list((tmp_path/'masks').glob('*.png'))) < 2 and p.poll() is None:
        time.sleep(.02)
    p.send_signal(signal.SIGTERM)
    said = 'stopped by SIGTERM. What is finished is kept, and the same command goes on from there.\n'
    assert ended(p) == (143, said)
    lines = (tmp_path/'masks/manifest.jsonl').read_text().split('\n')[1:]
    done = [json.loads(line)['file'] for line in lines if line]
    assert 0 < len(done) < 12
    status, out, err = call('bcd_predict', *words)
    assert status == 0 and f'{len(done)} files were finished before' in out, err
