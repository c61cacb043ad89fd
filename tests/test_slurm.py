"""Parts of an archive, and seeds of a training, on a Slurm of one node, which the test starts for itself.

Debian: apt-get install munge slurmctld slurmd slurm-client; and pip install "bcd_fast[slurm]".
"""
import importlib.util, os, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, pytest, torch
from omegaconf import OmegaConf
from PIL import Image
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from bcd_fast.prediction.predict import predict_folder

os.environ['PATH'] += ':/usr/sbin'
MISSING = [p for p in ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scancel') if not shutil.which(p)]
MISSING += [m for m in ('submitit',) if not importlib.util.find_spec(m)]
ROOT = hasattr(os, 'geteuid') and os.geteuid() == 0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f'not installed: {", ".join(MISSING)}'),
              pytest.mark.skipif(not ROOT, reason='slurmd runs as root')]
CONF = '''ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={top}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd.pid
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
'''


def free_ports(n):
    held = [socket.socket() for _ in range(n)]
    for s in held:
        s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def state(env):
    "Jobs with why they wait, the node, and what the programs have written last."
    ask = ['squeue'], ['scontrol', 'show', 'job'], ['scontrol', 'show', 'node']
    said = [subprocess.run(words, env=env, capture_output=True, text=True).stdout for words in ask]
    logs = [p.read_text()[-2000:] for p in sorted(Path(env['SLURM_CONF']).parent.glob('*.log'))]
    return '\n'.join([*said, *logs])


def until(true, env):
    "Wait for something; fails with the state of the cluster when it does not come."
    end = time.monotonic()+240
    while not true():
        assert time.monotonic() < end, f'waited too long: {state(env)}'
        time.sleep(.3)


@pytest.fixture(scope='module')
def slurm():
    "The environment of a cluster of one node, with programs of its own that end with the tests."
    top = Path(tempfile.mkdtemp(prefix='slurm')) # sockets want short paths
    for name in ('state', 'spool'):
        (top/name).mkdir()
    (top/'key').write_bytes(os.urandom(128))
    (top/'key').chmod(0o400)
    top.chmod(0o755)
    (top/'slurm.conf').write_text(CONF.format(top=top, host=socket.gethostname().split('.')[0], ports=free_ports(2)))
    env = dict(os.environ, SLURM_CONF=str(top/'slurm.conf'), PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1',
               PYTHONPATH=os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get('PYTHONPATH', '')]))
    env = {k: v for k, v in env.items() if not k.startswith('SLURM_ARRAY')}
    munge = ['munged', '--foreground', '--force', f'--key-file={top}/key', f'--socket={top}/munge.socket',
             f'--log-file={top}/munge.log', f'--pid-file={top}/munge.pid', f'--seed-file={top}/munge.seed']
    programs = []
    with open(top/'programs.log', 'w') as log:
        for words in (munge, ['slurmctld', '-D', '-i', '-f', env['SLURM_CONF']],
                      ['slurmd', '-D', '-f', env['SLURM_CONF']]):
            programs.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))
            time.sleep(1)
        try:
            ask = lambda: subprocess.run(['sinfo', '-h', '-o', '%T'], env=env, capture_output=True, text=True).stdout
            until(lambda: 'idle' in ask(), env)
            yield env
        finally:
            subprocess.run(['scancel', '--user=root'], env=env)
            for p in reversed(programs):
                p.send_signal(signal.SIGTERM)
                p.wait(30)
            shutil.rmtree(top, ignore_errors=True)


def files(folder):
    "What a run has written, without what only parts and logs are."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()
            and not p.name.startswith('.') and '-of-' not in p.name and 'logs' not in p.relative_to(folder).parts}


def command(env, name, *words, folder):
    code = f'from bcd_fast.environment import {name}; import sys; sys.exit({name}())'
    return subprocess.run([sys.executable, '-c', code, *map(str, words)], env=env, cwd=folder, capture_output=True,
                          text=True, timeout=280)


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    "A model, pictures in folders, and what a single run makes of them."
    top = tmp_path_factory.mktemp('archive')
    torch.manual_seed(0)
    save_model(top/'model', make_masker('small', 4, 1), 32, {})
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = top/'in'/('north', 'south/deep', '')[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 40), dtype=np.uint8)).save(folder/f'{i//3}.png')
    predict_folder(top/'model', top/'in', top/'single', .5, ('masks', 'coco', 'geojson'))
    return top


def sent(slurm, top, out, *more):
    words = 'predict', top/'model', top/'in', '--out', out, '--threshold', .5, '--write', 'masks', 'coco', 'geojson'
    return command(slurm, 'bcd_submit', *words, '--parts', 3, *more, folder=top)


def queue(slurm):
    return subprocess.run(['squeue', '-h', '-o', '%i %j %T'], env=slurm, capture_output=True, text=True).stdout


def test_a_killed_part_is_named_and_made_again(slurm, archive):
    out = archive/'out'
    done = sent(slurm, archive, out)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split('job ')[1].split(':')[0]
    until(lambda: f'{job}_1 bcd_predict RUNNING' in queue(slurm), slurm) # the second part
    subprocess.run(['scancel', '--signal=KILL', '--full', f'{job}_1'], env=slurm, check=True)
    until(lambda: not queue(slurm).strip(), slurm)
    merge_log = ''.join(p.read_text() for p in (out/'logs').glob('*_log.err'))
    assert 'part 2 of 3 has not ended' in merge_log
    assert f'part 2: {out}/logs/{job}_1' in merge_log
    assert files(out) != files(archive/'single')
    done = sent(slurm, archive, out, '--wait')
    assert done.returncode == 0, done.stderr
    assert '12 images of 3 parts' in done.stdout
    assert files(out) == files(archive/'single')


def test_seeds_on_the_cluster(slurm, tmp_path):
    pytest.importorskip('hydra_plugins.hydra_submitit_launcher')
    short = ['experiment=demo', 'data.n_objects=200', 'data.n_backgrounds=200', 'encoder.epochs=1', 'encoder.steps=5',
             'trainer.epochs=1', 'trainer.steps=5', 'trainer.bs=8', 'model.width=4', 'cluster.k=3', 'bar=false']
    done = command(slurm, 'bcd_train', '-m', 'seed=0,1', 'hydra/launcher=submitit_slurm', *short, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = [p.parent for p in tmp_path.rglob('metrics.json')]
    assert sorted(OmegaConf.load(p/'config.yaml').seed for p in runs) == [0, 1]
    assert all((p/'model/model.json').is_file() for p in runs)
