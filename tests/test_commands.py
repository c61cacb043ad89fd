"""The installed commands, as a user types them: each once in a process of its own, and then within this one."""
import json, shutil
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from bcd_fast.data.datasets import load_dataset
from bcd_fast.backgrounds.stage1 import fit_stage1
from bcd_fast.training.learner import predict_masks
from bcd_fast.training.stage2 import fit_stage2, stage2_learner
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.runs import METRICS
from conftest import SHORT, folder_of

TABLES = {'config.yaml', 'pictures.json', 'history.csv', 'steps.csv', 'metrics.json', 'monitor.json', 'report.html'}
PICTURES = {f'{name}.png' for name in ('clusters', 'confusion', 'counterfactuals', 'losses', 'masks', 'thresholds')}
FILES = TABLES | PICTURES | {'stage1', 'model', 'epochs', '.lock'}
BETWEEN = 'iou', 'dice', 'ap', 'auroc', 'iou_per_image', 'cluster_nmi', 'assignment_accuracy' # 0 and 1


def one_sentence(done, *parts):
    "Exit status 2 and one clear line, no traceback."
    status, out, err = done
    assert status == 2
    assert 'Traceback' not in out+err
    lines = [l for l in err.splitlines() if l.startswith('error:')]
    assert len(lines) == 1, err
    for part in parts:
        assert part in lines[0]


def test_train(trained):
    assert trained.folder.parent.resolve() == (trained.top/'runs/synthetic_segmentation').resolve()
    assert trained.files == FILES


def test_metrics(trained):
    metrics = json.loads((trained.folder/'metrics.json').read_text())
    expected = dict(experiment='synthetic_segmentation', data='mnist', k=3, n_train=210, n_test=30)
    assert tuple(metrics) == METRICS
    assert {k: metrics[k] for k in expected} == expected
    assert all(0 <= metrics[k] <= 1 for k in BETWEEN)


def test_cache(trained, train):
    status, out, _ = train('trainer.steps=2', folder=trained.top)
    assert status == 0
    assert 'found in the cache' in out and 'found in the cache' not in trained.out


def test_eval(trained, run):
    status, out, err = run('bcd_eval', trained.folder)
    assert status == 0, err
    before, scored = (json.loads((trained.folder/f).read_text()) for f in ('metrics.json', 'eval.json'))
    assert all(scored[k] == before[k] for k in ('iou', 'ap', 'cluster_nmi', 'settings'))


def test_eval_of_pictures(trained, call, tmp_path):
    "A model on a folder of pictures of other sizes than it was trained on."
    for name in ('objects', 'masks', 'backgrounds'):
        (tmp_path/'data'/f'test_{name}').mkdir(parents=True)
        for i in range(3):
            noise = np.random.default_rng(i).integers(0, 256, (70, 90+i)).astype(np.uint8)
            Image.fromarray(noise//128*255 if name == 'masks' else noise).save(tmp_path/f'data/test_{name}/{i}.png')
    status, out, err = call('bcd_eval', trained.folder, 'data', '--prefix', 'test_', '--out', 'scored')
    assert status == 0, err
    scored = json.loads((tmp_path/'scored/eval.json').read_text())
    assert (scored['pictures'], scored['backgrounds']) == (3, 3)
    assert abs(scored['area']-.5) < .02
    assert {p.name for p in (tmp_path/'scored').iterdir()} == {'eval.json', 'per_picture.csv', 'worst.png'}


@pytest.fixture
def pictures(tmp_path):
    "A folder with six pictures, each wider than the one before, and a broken one."
    folder = tmp_path/'images'
    folder.mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64+i)).astype(np.uint8)
        Image.fromarray(noise).save(folder/f'{i}.png')
    (folder/'broken.png').write_bytes(b'broken')
    return folder


def test_predict(trained, run, pictures, tmp_path):
    status, out, err = run('bcd_predict', trained.folder/'model', pictures, '--out', tmp_path/'masks')
    assert status == 2
    assert 'broken.png cannot be read' in err and 'Traceback' not in err
    assert sorted(p.name for p in (tmp_path/'masks').glob('*.png')) == [f'{i}.png' for i in range(6)]
    for i in range(6):
        mask = np.asarray(Image.open(tmp_path/f'masks/{i}.png'))
        assert mask.shape == (64, 64+i) and set(np.unique(mask)) <= {0, 255}


def masks_after_training(cfg, nonsense):
    "Masks of a short training; `nonsense`: on data whose masks are inverted, and which has no labels."
    ds = load_dataset(n_objects=200, n_backgrounds=200)
    if nonsense:
        ds.objects.masks = ~ds.objects.masks
        ds.objects.labels, ds.backgrounds.labels = None, None
    learn = stage2_learner(cfg, ds, fit_stage1(cfg, ds))
    fit_stage2(cfg, learn)
    return predict_masks(learn.model, ds.objects.images[:8])


def test_masks_are_not_used_in_training(tmp_path):
    "Two trainings, one on data whose masks are nonsense: the same weights."
    cfg = compose_config([*SHORT, f'cache={tmp_path}'])
    first, second = (masks_after_training(cfg, nonsense) for nonsense in (False, True))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_unreadable_texture_is_listed_and_the_rest_done(train, files, tmp_path):
    shutil.copytree(files/'textures', tmp_path/'textures')
    (tmp_path/'textures/bad.png').write_bytes(b'not a picture')
    status, out, err = train(f'data.textures={tmp_path/"textures"}')
    assert status == 2
    assert 'bad.png cannot be read' in err and 'Traceback' not in err
    assert (tmp_path/folder_of(out)/'metrics.json').is_file()


@pytest.mark.parametrize('words, said', [
    (['data.path=nowhere'], ['nowhere is not a folder']),
    (['data.textures=nowhere'], ['nowhere is not a folder']),
    (['data.textures=empty'], ['empty holds no image']),
    (['data.textures=one'], ['1 usable texture', 'at least two']),
    (['cluster.k=500'], ['500 clusters cannot be made of 210']),
    (['trainer.epoch=3'], ['trainer.epoch is no setting', 'Did you mean trainer.epochs?']),
    (['model=fat'], ['Did you mean fast?']),
    (['divergence=energi'], ['Did you mean energy?']),
    (['divergence=energy', 'divergence.n_projections=9'], ['divergence.n_projections means nothing', 'energy'])])
def test_wrong_input_is_one_sentence(train, files, tmp_path, words, said):
    (tmp_path/'empty').mkdir()
    (tmp_path/'one').mkdir()
    shutil.copy(files/'textures/brick.tif', tmp_path/'one')
    one_sentence(train(*words), *said)


def test_one_background_of_your_own(call, tmp_path):
    for name, n in (('objects', 12), ('backgrounds', 1)):
        (tmp_path/name).mkdir()
        for i in range(n):
            Image.fromarray(np.full((64, 64), 20*i, np.uint8)).save(tmp_path/name/f'{i}.png')
    one_sentence(call('bcd_train', 'experiment=folder', f'data.path={tmp_path}'), 'backgrounds give 1 readable')


@pytest.mark.slow
def test_demo_rehearsal(run, tmp_path):
    status, out, err = run('bcd_demo', '--quick', '--out', 'here')
    assert status == 0, err
    for name in ('clusters.png', 'masks.png', 'counterfactuals.png'):
        assert str(Path('here')/name) in out and (tmp_path/'here'/name).is_file()
    assert 'remaining' in out
    assert out.strip().splitlines()[-1] == f'metrics.json: {Path("here")/"metrics.json"}'


def test_debug_callbacks_and_logger(train, tmp_path):
    "A few batches only, the best epoch kept, TensorBoard beside the CSV files."
    more = ['callbacks=early_stopping', 'logger=tensorboard', 'trainer.epochs=2']
    status, out, err = train('debug=limit', 'debug.n=2', *more)
    assert status == 0, err
    folder = tmp_path/folder_of(out)
    assert list(folder.glob('**/events.out.tfevents*')) and (folder/'history.csv').is_file()


def test_paper_recipe_runs(train, tmp_path):
    "The paper's method by name, made small: its divergence, its optimiser, its masker."
    status, out, err = train('recipe=paper', 'divergence.n_projections=20', 'trainer.steps=2', 'trainer.bs=4')
    assert status == 0, err
    metrics = json.loads((tmp_path/folder_of(out)/'metrics.json').read_text())
    expected = dict(recipe='paper', model='unet_paper', divergence='ebsw_on_pixels',
                    assignment_accuracy=1)  # the oracle's
    assert {k: metrics[k] for k in expected} == expected


def test_eval_of_something_else(call, tmp_path):
    one_sentence(call('bcd_eval', tmp_path), 'not the folder of a finished run')


def test_bench(run, tmp_path):
    status, out, err = run('bcd_bench', 'clustering', '--quick', '--out', 'here')
    assert status == 0, err
    saved = json.loads((tmp_path/'here/clustering.json').read_text())
    assert saved['command'] == 'bcd_bench clustering --quick'
    assert saved['rows'][0]['seconds'] > 0
    assert (tmp_path/'here/clustering.png').is_file()


def test_bench_of_something_else(call):
    one_sentence(call('bcd_bench', 'clusterings'), 'clusterings does not exist', 'Did you mean clustering?')


def test_supervised_bound(train, tmp_path):
    status, out, err = train('supervised=true', 'trainer.steps=2')
    assert status == 0, err
    assert json.loads((tmp_path/folder_of(out)/'metrics.json').read_text())['supervised'] is True


def test_several_runs(call, tmp_path):
    "One run for each seed, beside each other."
    words = ['data.n_objects=60', 'data.n_backgrounds=60', 'encoder.epochs=1', 'encoder.steps=3', 'cluster.k=2']
    status, out, err = call('bcd_train', '--multirun', 'seed=0,1', 'stage=1', 'bar=false', *words)
    assert status == 0, err
    assert sorted(p.parent.name[-1] for p in (tmp_path/'runs/demo').glob('*/metrics.json')) == ['0', '1']


@pytest.mark.parametrize('command, words, said', [
    ('bcd_check', ['x', '--size', '-1'], '--size: -1 is not possible: it must be at least 16'),
    ('bcd_check', ['x', '--channels', '0'], '--channels: 0 is not possible: it must lie from 1'),
    ('bcd_check', ['x', '--nodata', 'none'], '--nodata: none is not a number'),
    ('bcd_check', ['x', '--fit', 'both'], "invalid choice: 'both'"),
    ('bcd_check', ['nowhere'], 'nowhere is not there: give a folder'),
    ('bcd_check', ['file'], 'file is a file and no table'),
    ('bcd_check', ['.'], 'objects is not a folder'),
    ('bcd_check', ['.', '--out', 'nowhere/page.html'], 'nowhere is not a folder'),
    ('bcd_check', ['.', '--out', '.'], 'is a folder: give the name of a file'),
    ('bcd_eval', ['x', 'y', '--threshold', 'nan'], '--threshold: nan is not possible: it must lie between 0 and 1'),
    ('bcd_eval', ['x', 'y', '--worst', '-3'], '--worst: -3 is not possible: it must be at least 0'),
    ('bcd_eval', ['nowhere', '.'], 'nowhere is no model folder'),
    ('bcd_bench', ['clustering', '--quick', '--out', 'file'], 'file cannot be made'),
    ('bcd_figures', ['--benchmarks', 'nowhere'], 'nowhere is not a folder'),
    ('bcd_figures', ['--studies', '.'], 'holds no JSON file'),
    ('bcd_figures', ['--studies', '.', '--out', 'file'], 'file cannot be made'),
    ('bcd_demo', ['--seed', '-1'], '--seed: -1 is not possible: it must be at least 0'),
    ('bcd_demo', ['--fast'], 'unrecognized arguments: --fast'),
    ('bcd_train', ['data=folder', 'data.path=a\x1b[2J\nb'], 'a%1B[2J%0Ab'),
    ('bcd_train', ['data.size=abc'], 'data.size=abc is not possible: expected int at least 16'),
    ('bcd_train', ['-m', 'data.size=32,abc'], 'data.size=abc is not possible'),
    ('bcd_train', ['seed=1,2'], 'add --multirun'),
    ('bcd_train', ['hydra.nothing=1'], "Could not override 'hydra.nothing'"),
    ('bcd_train', ['--resume', 'no (run), here'], 'no (run), here is not the folder of a run')])
def test_words(call, tmp_path, command, words, said):
    (tmp_path/'file').write_text('no picture')
    one_sentence(call(command, *words), said)


def test_fault(call, monkeypatch):
    "A mistake of ours keeps its traceback, in which no name commands the terminal."
    def broken(*args):
        raise KeyError('\x1b[2J')
    monkeypatch.setattr('bcd_fast.train.check_words', broken)
    status, out, err = call('bcd_train')
    assert status == 1
    assert 'Traceback' in err and 'please report' in err.splitlines()[-1] and '\x1b' not in err


def test_colours_and_odd_names(call, tmp_path):
    "What becomes of colours is said; names in Latin-1, with new lines and with commands to the terminal stop nothing."
    for what in ('objects', 'backgrounds'):
        (tmp_path/'data'/what).mkdir(parents=True)
        for i, name in enumerate(('a\x1b[31m', 'new\nline', 'Gr\udcfcn', '<b>', *'efghijkl')):
            noise = np.random.default_rng(i+100*(what == 'objects')).integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(noise).save(tmp_path/'data'/what/f'{name}.png')
        (tmp_path/'data'/what/'bad\x1b[2J\n\udcfc.png').write_bytes(b'broken')
    status, out, err = call('bcd_check', 'data', '--channels', '1')
    assert status == 1, err
    assert 'colours are turned to gray by data.channels=1' in out and 'bad%1B[2J%0A%FC.png' in out
    page = (tmp_path/'bcd_check.html').read_text(encoding='utf-8')
    assert '\x1b' not in out+err+page and 'bad%1B[2J%0A%FC.png' in page
