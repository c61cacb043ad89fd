"Scores on whole real pictures, tried on small made ones: what a training gets, what is written, what is not run again."
import json, shutil, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd
import pytest, torch
from PIL import Image
from conftest import SHORT
from bcd_fast.core import InputError
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'scripts'))
import anomalib_peers  # noqa: E402
import make_corrections as made  # noqa: E402
import make_real as real  # noqa: E402

FEW = [w for w in SHORT if not w.startswith('cluster.')]+['cluster.k=1'] # few pictures are one cluster


def disc(rng, h, w):
    y, x = np.mgrid[:h, :w]
    return (y-rng.integers(20, h-20))**2+(x-rng.integers(20, w-20))**2 < 100


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A folder with the set `discs`: bright discs on noise, pictures of two sizes."
    top, rng = tmp_path_factory.mktemp('sets'), np.random.default_rng(0)
    for prefix, n in (('', 14), ('test_', 4)):
        for pile in ('objects', 'backgrounds'):
            (top/'discs'/f'{prefix}{pile}').mkdir(parents=True)
        (top/'discs'/f'{prefix}masks').mkdir()
        for i in range(n):
            h, w = (64, 64) if i % 2 else (64, 80)
            ground, shape = rng.normal(65, 8, (h, w)).clip(20, 110), disc(rng, h, w)
            picture = np.where(shape, ground+120, ground)
            for name, a in dict(objects=picture, backgrounds=ground, masks=255*shape).items():
                Image.fromarray(a.astype(np.uint8)).save(top/'discs'/f'{prefix}{name}'/f'{i}.png')
    return top


@pytest.fixture
def job(data, tmp_path):
    "A run of a method on the set."
    return lambda method, **more: real.Job(data/'discs', method, 0, .01/60, tmp_path, **more)


def run(data, out, *words):
    "The exit status, and the lines that are there afterwards."
    with pytest.raises(SystemExit) as e:
        real.main(['--data', str(data), '--out', str(out), '--minutes', '.001', *map(str, words)])
    return e.value.code, real.rows_in(out/'real.jsonl')


@pytest.mark.parametrize('method, seen', [('package', ['backgrounds', 'objects']),
                                          ('supervised', ['backgrounds', 'masks', 'objects'])])
def test_training_sees_no_test_part(job, monkeypatch, method, seen):
    "And only the bound sees masks."
    found = []
    def look(job, run, folder):
        found.extend(sorted(p.name for p in folder.iterdir()))
        assert (folder/'objects/0.png').read_bytes() == (job.data/'objects/0.png').read_bytes()
        raise InputError('enough')
    monkeypatch.setattr(real, 'train_package', look)
    with pytest.raises(InputError, match='enough'):
        real.make(job(method))
    assert found == seen


def test_peers_see_no_test_part(job, monkeypatch):
    found = []
    def look(folder):
        found.extend(sorted(p.name for p in folder.iterdir()))
        raise InputError('enough')
    monkeypatch.setattr(real, 'piles', look)
    with pytest.raises(InputError, match='enough'):
        real.make(job('otsu'))
    assert found == ['backgrounds', 'objects']


def test_peer(job):
    "Otsu finds bright discs; the line says what was run, where, and what it cost."
    row = real.make(job('otsu'))
    assert row['iou'] > .9 and row['pictures'] == row['backgrounds'] == 4
    assert [row[k] for k in ('set', 'method', 'seed')] == ['discs', 'otsu', 0]
    assert row['seconds'] > 0 and row['peak_rss_mb'] > 100
    assert all(row[k] for k in ('version', 'commit', 'torch', 'machine', 'when', 'command'))
    json.dumps(row)


def test_not_run_again(data, tmp_path, monkeypatch):
    "A second call makes only what is missing; methods without randomness are run for one seed."
    status, rows = run(data, tmp_path, '--own', '--peers', 'otsu', '--seeds', 0, 1)
    assert (status, [r['method'] for r in rows]) == (0, ['otsu'])
    made = []
    monkeypatch.setattr(real, 'in_own_process', lambda job: made.append(job.key) or rows[0] | dict(method=job.method))
    run(data, tmp_path, '--own', '--peers', 'otsu', 'blobs', '--seeds', 0, 1)
    assert made == [('discs', 'blobs', 0), ('discs', 'blobs', 1)]


def test_cut_off_line(tmp_path):
    "What a killed process left behind does not spoil the lines before and after it."
    path = tmp_path/'real.jsonl'
    path.write_text('{"set": "a"}\n{"se')
    real.append(path, dict(set='b'))
    assert [r['set'] for r in real.rows_in(path)] == ['a', 'b']


def test_failed_run(data, tmp_path, monkeypatch, capsys):
    "It is named, the others go on, and the next call tries it again."
    def fails(job):
        raise InputError('no luck')
    monkeypatch.setattr(real, 'in_own_process', fails)
    assert run(data, tmp_path, '--own', '--peers', 'otsu', 'cam', '--seeds', 0) == (2, [])
    assert capsys.readouterr().err.count('failed: no luck') == 2


def test_no_set(data, tmp_path):
    status, rows = run(data, tmp_path, '--sets', 'no')
    assert 'is no set: expected test_objects/' in status and not rows


def test_summary():
    "Means over seeds, their spread, and the share of the bound."
    row = dict.fromkeys(real.SHOWN, .5) | dict(set='a', seed=0, machine='m', torch='2', commit='c')
    rows = [row | dict(method='package', iou=.2), row | dict(method='package', iou=.4, seed=1, commit='d'),
            row | dict(method='supervised', iou=.6, ap=.8), row | dict(method='cam', set='b')]
    t = real.summary(rows)
    ours = t.loc['a', 'package']
    assert (ours.machine, ours.commit) == ('m', 'c / d')
    assert (ours.seeds, round(ours.iou, 6), round(ours.iou_sd, 6)) == (2, .3, round(np.std([.2, .4], ddof=1), 6))
    assert (round(ours.iou_of_bound, 6), ours.ap_of_bound) == (.5, .5/.8)
    assert np.isnan(t.loc['b', 'cam'].iou_of_bound) and np.isnan(t.loc['b', 'cam'].iou_sd)


def brightness_maps(command, log):
    "Instead of anomalib: each picture is its own map."
    assert command[1].endswith('anomalib_peers.py') and 'masks' not in ' '.join(command)
    kept, test, out = (Path(command[command.index('--maps')+i]) for i in (1, 2, 4))
    for folder in (kept, test):
        (out/folder.name).mkdir(parents=True)
        for p in folder.iterdir():
            np.save(out/folder.name/f'{p.stem}.npy', np.asarray(Image.open(p))[..., 0]/255)
    (out/'about.json').write_text(json.dumps(dict(seconds=1., seconds_test=1., peak_rss_mb=200.)))


@pytest.mark.parametrize('method', real.ANOMALIB)
def test_anomalib(job, monkeypatch, method):
    "Maps meet their pictures; distances get their threshold from backgrounds."
    monkeypatch.setattr(real, 'call', brightness_maps)
    row = real.make(job(method, python='python'))
    assert row['ap'] > .99 and row['pictures'] == row['backgrounds'] == 4
    masked = row['background_masked']
    assert masked == 0 if method == 'draem' else .005 < masked < .02 # one pixel in a hundred


class Mean:
    "Instead of a network of anomalib: it learns the mean gray, and a map is the distance from it."
    def __init__(self, textures=None):
        self.net, self.batch = torch.nn.Linear(1, 1), 4
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=.5)

    def loss(self, x):
        return (self.net.bias-x.mean()).square().sum()

    def map(self, x):
        return (x.mean(1)-self.net.bias).abs()


def test_anomalib_program(data, tmp_path, monkeypatch):
    "Its loop learns, and its maps have the resolution of their pictures; so far without anomalib."
    monkeypatch.setitem(anomalib_peers.METHODS, 'draem', Mean)
    monkeypatch.setattr(anomalib_peers, 'version', lambda name: '0')
    where = dict(train=data/'discs/backgrounds', maps=data/'discs/test_objects', out=tmp_path)
    words = [w for k, v in where.items() for w in (f'--{k}', str(v))]
    anomalib_peers.main(['--method', 'draem', *words, '--seconds', '.5', '--size', '32'])
    about = json.loads((tmp_path/'about.json').read_text())
    assert about['steps'] > 3 and about['size'] == [64, 64] # two steps of 32 at least
    for path in (data/'discs/test_objects').iterdir():
        found, picture = np.load(tmp_path/f'test_objects/{path.stem}.npy'), np.asarray(Image.open(path))
        assert found.shape == picture.shape
        assert found[picture > 150].mean() > .3 and found[picture < 100].mean() < .1


@pytest.fixture(scope='module')
def scored(data, tmp_path_factory):
    "The package and its bound, trained by the command and scored: where, exit status, lines."
    out = tmp_path_factory.mktemp('scored')
    with pytest.MonkeyPatch.context() as patched: # `test_not_run_again` has a process of its own
        patched.setattr(real, 'in_own_process', real.make)
        status, rows = run(data, out, '--own', 'package', 'supervised', '--peers', '--seeds', 0, '--show', 'discs',
                           '--set', *FEW)
    return SimpleNamespace(out=out, status=status, rows=rows)


@pytest.mark.slow
def test_package_and_bound(scored):
    "Both are scored on the test part; real.csv sets them side by side."
    assert (scored.status, [r['method'] for r in scored.rows]) == (0, ['package', 'supervised'])
    assert all(r['pictures'] == 4 and 0 <= r['iou'] <= 1 and r['peak_rss_mb'] > 100 for r in scored.rows)
    table = pd.read_csv(scored.out/'real.csv', index_col=['set', 'method'])
    assert table.loc[('discs', 'supervised'), 'ap_of_bound'] == 1


def trained_before(scored):
    "Instead of a training: its model is there already."
    def train(job, run, folder):
        shutil.copytree(scored.out/'runs/discs/package_0/model', run/'model')
        return dict(peak_rss_mb=200.)
    return train


@pytest.mark.slow
def test_pictures_are_drawn_only_where_that_is_asked_for(job, scored, tmp_path, monkeypatch):
    with Image.open(scored.out/'real_discs.png') as drawn:
        assert drawn.format == 'PNG' and min(drawn.size) > 200
    monkeypatch.setattr(real, 'train_package', trained_before(scored))
    real.make(job('package'))
    assert not list(tmp_path.glob('real_*.png'))
    real.make(job('package', show=True))
    assert (tmp_path/'real_discs.png').is_file()


@pytest.mark.slow
def test_corrected_masks_are_random_suggested_or_alone(data, tmp_path):
    "A line for each run; the model that has seen no mask comes back where only its line was kept."
    def corrections(*words):
        with pytest.raises(SystemExit) as e:
            made.main(['--data', str(data), '--sets', 'discs', '--seeds', '0', '--out', str(tmp_path), *words,
                       '--real', str(tmp_path/'real.csv'), '--set', *FEW])
        return e.value.code, made.rows_in(tmp_path/'corrections.jsonl')
    columns = dict(set='discs', method='supervised', iou=1., ap=1.)
    pd.DataFrame([columns]).to_csv(tmp_path/'real.csv', index=False)
    assert corrections('--masks', '0', '--ways', 'random')[0] == 0
    shutil.rmtree(tmp_path/'runs')
    status, rows = corrections('--masks', '0', '3')
    assert status == 0
    assert [(r['way'], r['masks']) for r in rows] == [('random', 0), ('random', 3), ('suggested', 3), ('alone', 3)]
    for way in made.WAYS:
        assert len(list((tmp_path/'runs/discs'/f'{way}_3_0'/'corrected').rglob('*.png'))) == 3
    table = pd.read_csv(tmp_path/'corrections.csv').set_index(['way', 'masks'])
    first, end = table.ap['random', 0], table.ap['alone', 3]
    assert table.ap_of_way['random', 0] == 0
    assert table.ap_of_way['alone', 3] == pytest.approx((end-first)/(1-first), abs=1e-3)


def test_a_run_is_of_one_process(data, tmp_path):
    "A second one is refused, and what the first one has written stays."
    job = made.Job(data/'discs', 'random', 0, 0, tmp_path)
    with made.run_folder(job) as folder:
        assert sorted(p.name for p in folder.iterdir()) == ['backgrounds', 'objects']
        (job.run/'log.txt').write_text('of the first\n', encoding='utf-8')
        with pytest.raises(InputError, match='in use by another process'), made.run_folder(job):
            pass
        assert (job.run/'log.txt').is_file()
    with made.run_folder(job):
        assert not list(job.run.iterdir())
