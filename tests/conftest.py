"""Small data in the real formats, made anew for every session of tests."""
import gzip, os, struct, subprocess, sys
import numpy as np, pytest
from PIL import Image
from bcd_fast.objects import embedded_digits, enlarge
from bcd_fast.textures import embedded_textures

SHORT = ['encoder.epochs=1', 'encoder.steps=30', 'trainer.epochs=1', 'trainer.steps=10', 'trainer.bs=8', 'model.width=8', 'cluster.k=3', 'bar=false']


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    "A folder with `mnist/` (gzipped idx) and `textures/` (TIFF)."
    top = tmp_path_factory.mktemp('files')
    digits = enlarge(embedded_digits()[:300], 28)
    (top/'mnist').mkdir()
    (top/'mnist/t10k-images-idx3-ubyte.gz').write_bytes(gzip.compress(struct.pack('>HBB3I', 0, 8, 3, *digits.shape)+digits.tobytes()))
    (top/'textures').mkdir()
    for name, tex in list(embedded_textures().items())[:3]: Image.fromarray(tex[:180, :180]).save(top/f'textures/{name}.tif')
    return top


@pytest.fixture
def run(tmp_path):
    "Runs a module or an installed command in an empty folder: exit status, standard output, standard error."
    def call(*words):
        env = dict(os.environ, MPLBACKEND='Agg', PYTHONWARNINGS='ignore')
        start = [sys.executable, '-m', *words] if words[0].startswith('bcd_fast.') else [os.path.join(os.path.dirname(sys.executable), words[0]), *words[1:]]
        done = subprocess.run([str(w) for w in start], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr
    return call


@pytest.fixture
def train(run, files):
    "`bcd_fast.train` on the small MNIST folder, with more words."
    return lambda *words: run('bcd_fast.train', 'experiment=synthetic_segmentation', 'data.name=mnist', f'data.path={files/"mnist"}',
                              f'data.textures={files/"textures"}', 'data.n_objects=300', 'data.n_backgrounds=300', *SHORT, *words)
