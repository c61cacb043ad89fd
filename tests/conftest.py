"""Small data in the real formats, made anew for every session of tests."""
import gzip, io, os, shutil, struct, subprocess, sys, warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import entry_points
from types import SimpleNamespace
os.environ['MPLBACKEND'] = 'Agg' # before matplotlib is imported; new processes inherit it
os.environ.setdefault('OMP_NUM_THREADS', '1') # two workers on two cores
import numpy as np, pytest, torch
from PIL import Image
from bcd_fast.data.textures import embedded_textures
from bcd_fast.data.objects import embedded_digits, enlarge
from bcd_fast.drawing import figures
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model

SHORT = ['encoder.epochs=1', 'encoder.steps=10', 'trainer.epochs=1', 'trainer.steps=10', 'trainer.bs=8',
         'model.width=4', 'cluster.k=3', 'bar=false']


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    "A folder with `mnist/` (gzipped idx) and `textures/` (TIFF)."
    top = tmp_path_factory.mktemp('files')
    for name in ('mnist', 'textures'):
        (top/name).mkdir()
    digits = enlarge(embedded_digits()[:300], 28)
    idx = struct.pack('>HBB3I', 0, 8, 3, *digits.shape)+digits.tobytes()
    (top/'mnist/t10k-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx))
    for name, tex in list(embedded_textures().items())[:3]:
        Image.fromarray(tex[:180, :180]).save(top/f'textures/{name}.tif')
    return top


posix = pytest.mark.skipif(os.name != 'posix', reason='pipes, links, process groups and signals of POSIX')
linux = pytest.mark.skipif(sys.platform != 'linux', reason='limits of memory and of files as Linux sets and tells them')


def program(name):
    "The first words of a command line: those of a module, or the installed command."
    if name.startswith('bcd_fast.'):
        return [sys.executable, '-m', name]
    return [shutil.which(name, path=os.path.dirname(sys.executable))] # on Windows NAME.exe


def start(words, folder):
    "A module or an installed command in a process of its own: exit status, standard output, standard error."
    command = [*program(words[0]), *map(str, words[1:])]
    env = dict(os.environ, PYTHONWARNINGS='ignore')
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def run(tmp_path):
    "`start` in an empty folder, or in another one."
    return lambda *words, folder=tmp_path: start(words, folder)


LONGEST = ('test_commands', 'test_experiments', 'test_grounds', 'test_settings', 'test_studies', 'test_resume',
           'test_whole', 'test_your_images', 'test_stops', 'test_runs', 'test_processes', 'test_real',
           'test_bands', 'test_numbers', 'test_malformed')


def pytest_collection_modifyitems(items):
    "Files that take long come first, so that two workers end together: see --no-loadscope-reorder in pytest.ini."
    places = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def listener():
    "A stream of text that keeps what is written, as terminals take it."
    return io.TextIOWrapper(io.BytesIO(), encoding='utf-8', newline='', write_through=True)


def within(words, folder):
    "As `start`, but the command's function within this process, which has imported everything already."
    command, = entry_points(group='console_scripts', name=words[0])
    out, err = listener(), listener()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter('ignore') # the commands set how warnings are shown
        patched.chdir(folder)
        patched.setattr(sys, 'argv', [str(w) for w in words])
        try:
            status = command.load()()
        except SystemExit as e:
            status = e.code
    return (status or 0, *(s.buffer.getvalue().decode() for s in (out, err)))


@pytest.fixture
def call(tmp_path):
    "`within` in an empty folder, or in another one."
    return lambda *words, folder=tmp_path: within(words, folder)


@contextmanager
def dots():
    "Figures become dots: for tests that are not about them."
    dot = io.BytesIO()
    Image.new('L', (1, 1)).save(dot, 'PNG')
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figures, 'figure_bytes', lambda *args, **kwargs: dot.getvalue())
        yield


@pytest.fixture(scope='module')
def drawn_quickly():
    "`dots` in all tests of a file."
    with dots():
        yield


@pytest.fixture(scope='session')
def settings(files):
    "Words for a short run on the small MNIST folder."
    data = ['data.name=mnist', f'data.path={files/"mnist"}', f'data.textures={files/"textures"}',
            'data.n_objects=300', 'data.n_backgrounds=300']
    return ['experiment=synthetic_segmentation', *data, *SHORT]


@pytest.fixture(scope='session')
def trained(settings, tmp_path_factory):
    "What `python -m bcd_fast.train` did and wrote in an empty folder, `top`; made once."
    top = tmp_path_factory.mktemp('trained')
    status, out, err = start(['bcd_fast.train', *settings], top)
    assert status == 0, err
    folder = top/folder_of(out)
    return SimpleNamespace(top=top, out=out, folder=folder, files={p.name for p in folder.iterdir()})


@pytest.fixture
def train(call, settings):
    "`bcd_train` with `settings` and more words."
    return lambda *words, **kwargs: call('bcd_train', *settings, *words, **kwargs)


def folder_of(out):
    "The folder of a run, from the last line it printed."
    last = out.strip().splitlines()[-1]
    assert last.startswith('metrics.json: ')
    return os.path.dirname(last.removeprefix('metrics.json: '))


def bright(model, x):
    "What a masker that can be reckoned with makes of a batch: the grays themselves."
    return np.where(np.isnan(x[:, 0]), 0, x[:, 0]).astype(np.float32)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A folder of a model."
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp('model')/'model', make_masker('small', 4, 1), 32, {})


@pytest.fixture(scope='module')
def finds_bright():
    "Models find what is bright, in all tests of a file."
    with pytest.MonkeyPatch.context() as patched:
        for module in ('tiles', 'predict'):
            patched.setattr(f'bcd_fast.prediction.{module}.predict_batch', bright)
        yield
