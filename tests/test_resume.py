"A training that is killed, at any moment, goes on to the same weights."
import json, os, random, shutil, signal, subprocess, sys, time
from types import SimpleNamespace

import pytest
from conftest import linux, posix
try:
    import resource
except ImportError: # Windows
    resource = None

pytestmark = posix # Ctrl-C and SIGKILL for another process
WORDS = ['experiment=demo', 'data.n_objects=300', 'data.n_backgrounds=300', 'data.size=32', 'encoder.epochs=1',
         'encoder.steps=20', 'trainer.epochs=6', 'trainer.steps=10', 'trainer.bs=8', 'trainer.precision=float32',
         'model.width=4', 'bar=false', 'hydra.run.dir=run']
SUFFIXES = {'.safetensors', '.json', '.csv', '.yaml', '.png', '.html', '.md', ''} # of files that are whole
KILLS = int(os.environ.get('BCD_KILLS', 1)) # of the test; more by hand: BCD_KILLS=20 pytest tests/test_resume.py


def start(words, cwd):
    "`python -m bcd_fast.train` in a process of its own, under way."
    command = [sys.executable, '-W', 'ignore', '-m', 'bcd_fast.train', *map(str, words)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=cwd, env=os.environ | dict(OMP_NUM_THREADS='1'), **pipes)


def finished(p):
    "Exit status, standard output, standard error."
    out, err = p.communicate(timeout=300)
    return p.returncode, out, err


def weights_of(run):
    "The bytes of the weights of a finished run."
    return (run/'model/model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The same training, left alone: how to start another with its stage 1, its weights, and how long it took."
    d = tmp_path_factory.mktemp('whole')
    begun = time.monotonic()
    status, _, err = finished(start(WORDS, d))
    assert status == 0, err
    return SimpleNamespace(words=[*WORDS, f'cache={d/"runs/stage1"}'], weights=weights_of(d/'run'),
                           seconds=time.monotonic()-begun)


def kill(p):
    p.send_signal(signal.SIGKILL)
    p.communicate()


def kill_and_go_on(whole, folder):
    "Kill a training at a random moment, finish it, and compare."
    p, run = start(whole.words, folder), folder/'run'
    time.sleep(random.uniform(.3, 1)*whole.seconds)
    kill(p)
    if not (run/'config.yaml').is_file():
        return # killed before it began
    assert all(f.suffix in SUFFIXES or f.name.startswith('.') for f in run.rglob('*'))
    if not (run/'metrics.json').is_file():
        status, _, err = finished(start(['--resume', run], folder))
        assert status == 0, err
    assert weights_of(run) == whole.weights
    assert json.loads((run/'metrics.json').read_text())['iou'] is not None
    assert not (run/'checkpoint.safetensors').exists()


@pytest.mark.slow
def test_sigkill(whole, tmp_path):
    for i in range(KILLS):
        (tmp_path/str(i)).mkdir()
        kill_and_go_on(whole, tmp_path/str(i))


@pytest.fixture(scope='module')
def stopped(whole, tmp_path_factory):
    "A training in which somebody pressed Ctrl-C once an epoch was done: where, exit status, standard error."
    top = tmp_path_factory.mktemp('stopped')
    p = start(whole.words, top)
    for line in p.stdout:
        if line.startswith('stage 2'):
            break
    while not (top/'run/history.csv').is_file():
        time.sleep(.05)
    p.send_signal(signal.SIGINT)
    status, _, err = finished(p)
    return SimpleNamespace(top=top, status=status, err=err)


@pytest.fixture
def unfinished(stopped, tmp_path):
    "An empty folder with that run in it, to go on with."
    shutil.copytree(stopped.top/'run', tmp_path/'run')
    return tmp_path


@pytest.mark.slow
def test_ctrl_c(whole, stopped, unfinished, call):
    assert stopped.status == 130
    assert 'stopped by the keyboard. Go on with: bcd_train --resume' in stopped.err and 'Traceback' not in stopped.err
    status, out, err = call('bcd_train', '--resume', 'run')
    assert status == 0, err
    assert 'of them done before' in out
    assert weights_of(unfinished/'run') == whole.weights
    status, _, err = call('bcd_train', '--resume', 'run')
    assert status == 2 and 'is finished' in err


@pytest.mark.parametrize('words, why', [
    (['.'], 'config.yaml is missing'),
    ([], 'takes the folder'),
    (['.', 'seed=1'], 'takes the folder')])
def test_not_a_run(tmp_path, call, words, why):
    words = [tmp_path if w == '.' else w for w in words]
    status, _, err = call('bcd_train', '--resume', *words)
    assert status == 2
    assert why in err and 'Traceback' not in err


def resume_on_full_disk(folder):
    "Go on with a run whose files may not grow beyond some kilobytes."
    p = start(['--resume', 'run'], folder)
    resource.prlimit(p.pid, resource.RLIMIT_FSIZE, (2**13, 2**13))
    return finished(p)


@pytest.mark.slow
@linux
def test_full_disk(whole, unfinished, call):
    "One sentence, and the last checkpoint is whole."
    checkpoint = unfinished/'run/checkpoint.safetensors'
    before = checkpoint.read_bytes()
    status, _, err = resume_on_full_disk(unfinished)
    assert status == 2, err
    for part in ('cannot be written', 'bcd_train --resume run'):
        assert part in err
    assert err.startswith('error: ') and err.count('\n') == 1, err # nothing before the sentence
    assert checkpoint.read_bytes() == before
    status, _, err = call('bcd_train', '--resume', 'run')
    assert status == 0, err
    assert weights_of(unfinished/'run') == whole.weights
