"A training that is killed, at any moment, goes on to the same weights."
import json, os, random, resource, signal, subprocess, sys, time

import pytest

WORDS = ['experiment=demo', 'data.n_objects=300', 'data.n_backgrounds=300', 'encoder.epochs=1', 'encoder.steps=20', 'trainer.epochs=6', 'trainer.steps=10',
         'trainer.bs=8', 'model.width=4', 'data.size=32', 'bar=false', 'trainer.precision=float32']
KILLS = int(os.environ.get('BCD_KILLS', 1)) # of the test; more by hand: BCD_KILLS=20 pytest tests/test_resume.py


def start(words, cwd):
    env = os.environ | dict(OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-m', 'bcd_fast.train', *map(str, words)], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(p):
    out, err = p.communicate(timeout=300)
    return p.returncode, out, err


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The same training, left alone: its weights, and how long it took."
    d = tmp_path_factory.mktemp('whole')
    begun = time.monotonic()
    status, _, err = finished(start([*WORDS, 'hydra.run.dir=run'], d))
    assert status == 0, err
    return d, (d/'run/model/model.safetensors').read_bytes(), time.monotonic()-begun


def test_sigkill(whole, tmp_path):
    first, weights, seconds = whole
    for i in range(KILLS):
        d = tmp_path/str(i)
        d.mkdir()
        p = start([*WORDS, 'hydra.run.dir=run', f'cache={first/"runs/stage1"}'], d)
        time.sleep(random.uniform(.3, 1)*seconds)
        p.send_signal(signal.SIGKILL)
        p.communicate()
        run = d/'run'
        if not (run/'config.yaml').is_file():
            continue # killed before it began
        assert all(f.suffix in ('.safetensors', '.json', '.csv', '.yaml', '.png', '.html', '.md', '') or f.name.startswith('.') for f in run.rglob('*'))
        if not (run/'metrics.json').is_file():
            status, out, err = finished(start(['--resume', run], d))
            assert status == 0, err
        assert (run/'model/model.safetensors').read_bytes() == weights
        assert json.loads((run/'metrics.json').read_text())['iou'] is not None
        assert not (run/'checkpoint.safetensors').exists()


def test_ctrl_c(whole, tmp_path, call):
    _, weights, _ = whole
    p = start([*WORDS, 'hydra.run.dir=run', f'cache={whole[0]/"runs/stage1"}'], tmp_path)
    for line in p.stdout:
        if line.startswith('stage 2'):
            break
    while not (tmp_path/'run/history.csv').is_file():
        time.sleep(.05)
    p.send_signal(signal.SIGINT)
    status, _, err = finished(p)
    assert status == 2 and f'bcd_train --resume' in err and 'Traceback' not in err
    status, out, err = finished(start(['--resume', 'run'], tmp_path))
    assert status == 0 and 'of them done before' in out, err
    assert (tmp_path/'run/model/model.safetensors').read_bytes() == weights
    status, _, err = call('bcd_train', '--resume', 'run')
    assert status == 2 and 'is finished' in err


def test_not_a_run(tmp_path, call):
    for words, why in ((['--resume', tmp_path], 'config.yaml is missing'), (['--resume'], 'takes the folder'), (['--resume', tmp_path, 'seed=1'], 'takes the folder')):
        status, _, err = call('bcd_train', *words)
        assert status == 2 and why in err and 'Traceback' not in err


def test_full_disk(whole, tmp_path):
    "No file may grow beyond some kilobytes: one sentence, and the last checkpoint is whole."
    p = start([*WORDS, 'hydra.run.dir=run', f'cache={whole[0]/"runs/stage1"}'], tmp_path)
    while not (tmp_path/'run/checkpoint.safetensors').is_file() and p.poll() is None:
        time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    before = (tmp_path/'run/checkpoint.safetensors').read_bytes()
    p = start(['--resume', 'run'], tmp_path)
    resource.prlimit(p.pid, resource.RLIMIT_FSIZE, (2**13, 2**13))
    status, _, err = finished(p)
    assert status == 2 and 'cannot be written' in err and 'bcd_train --resume run' in err and 'Traceback' not in err, err
    assert (tmp_path/'run/checkpoint.safetensors').read_bytes() == before
    status, _, err = finished(start(['--resume', 'run'], tmp_path))
    assert status == 0 and (tmp_path/'run/model/model.safetensors').read_bytes() == whole[1], err
