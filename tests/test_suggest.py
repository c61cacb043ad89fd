"Which pictures are to be corrected: all sorts of unsure ones, real false alarms, and nothing twice."
import numpy as np, pandas as pd, pytest, shlex, tifffile, torch
import torch.nn.functional as F
from PIL import Image
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.commands.suggest import bcd_suggest
from bcd_fast.data.corrected import write_corrected
from bcd_fast.masker.maskers import Masker, make_masker
from bcd_fast.prediction import suggestions
from bcd_fast.prediction.models import load_model, save_model
from bcd_fast.prediction.suggestions import WHY, Look, chosen_of, suggest

SIDE = 48
KINDS = 'checked', 'thin', 'missing' # unsure, of three sorts
SURE = [f'objects/frame{i:02}.png' for i in range(40)] # copies of one scene


class Texture(torch.nn.Module):
    "Brightness and roughness, at an eighth of the resolution."
    def forward(self, x):
        rough = (x-F.avg_pool2d(x, 3, 1, 1)).abs()
        return F.avg_pool2d(torch.cat([x, rough], 1), 8)


class Bright(Masker):
    "Finds what is bright."
    def __init__(self):
        super().__init__('small', 4, 1)
        self.down = torch.nn.ModuleList([Texture()])
        self.weight = torch.nn.Parameter(torch.tensor(40.))
    def logits(self, x):
        self.down[-1](x)
        return self.weight*(x-.55)


def picture(kind, seed=0):
    "Gray noise with a bright square, or something that is harder to find."
    a = np.random.default_rng(seed).normal(40, 3, (SIDE, SIDE))
    if kind == 'sure':
        a[12:36, 12:36] = 220
    if kind == 'checked':
        a[8:40, 8:40] = 40+200*(np.indices((32, 32)).sum(0) % 2)
    if kind == 'thin':
        a[6:42, 22:25] = a[22:25, 6:42] = a[6:9, 6:42] = 190
    if kind == 'missing':
        a += 60
    if kind == 'alarm':
        a[:30, :30] = 210
    return a.clip(0, 255).astype(np.uint8)


def write(folder, pictures):
    "Name -> array."
    for name, a in pictures.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(a).save(folder/name)


def pile():
    "Copies of a sure picture, three unsure ones, backgrounds of which one is masked."
    found = {name: picture('sure', i) for i, name in enumerate(SURE)}
    found |= {f'objects/{kind}.png': picture(kind) for kind in KINDS}
    found |= {f'backgrounds/{i}.png': picture('plain', i) for i in range(10)}
    return found | {'backgrounds/alarm.png': picture('alarm')}


@pytest.fixture
def model(tmp_path, monkeypatch):
    "The folder of a model that finds what is bright."
    save_model(tmp_path/'model', make_masker('small', 4), 32, {})
    about = load_model(tmp_path/'model')[1]
    monkeypatch.setattr(suggestions, 'load_model', lambda folder: (Bright().eval(), about))
    return tmp_path/'model'


@pytest.fixture
def data(tmp_path):
    write(tmp_path/'data', pile())
    return tmp_path/'data'


def names(found):
    return [s.picture for s in found[0]]


def frames(found):
    "How many of the sure copies are named."
    return len({*names(found)} & {*SURE})


def test_each_sort_is_suggested(model, data):
    found, left = suggest(model, data, 5)
    assert {s.picture: s.why for s in found if s.picture not in SURE} == {
        'objects/checked.png': WHY['unsure'], 'objects/thin.png': WHY['unsure'], 'objects/missing.png': WHY['none'],
        'backgrounds/alarm.png': WHY['alarm']}
    assert not left and all(.02 < s.gain <= 1 for s in found), found


def test_copies_do_not_fill_the_list(model, data):
    "Fifty frames of an unsure scene, and forty of a sure one, take one place each."
    write(data, {f'objects/again{i:02}.png': picture('checked', i+1) for i in range(50)})
    found = suggest(model, data, 5)
    assert sum('again' in name or 'checked' in name for name in names(found)) == 1 and frames(found) == 1
    assert {'objects/thin.png', 'objects/missing.png', 'backgrounds/alarm.png'} < {*names(found)}


def test_corrected_pictures_are_left_out(model, data):
    "What looks like them is not asked for either, as long as there is something else."
    write(data, {f'objects/again{i:02}.png': picture('checked', i+1) for i in range(5)})
    write_corrected(data, 'objects/checked.png', np.zeros((SIDE, SIDE), np.uint8))
    found = suggest(model, data, 4)
    assert {*names(found)}-{*SURE} == {'objects/thin.png', 'objects/missing.png', 'backgrounds/alarm.png'}
    write_corrected(data, 'backgrounds/alarm.png', np.zeros((SIDE, SIDE), np.uint8))
    assert 'backgrounds/alarm.png' not in names(suggest(model, data, 6))


def test_what_looks_like_corrected_ones_waits(model, data):
    again = {f'objects/again{i:02}.png': picture('missing', i+1) for i in range(5)}
    write(data, again)
    assert {*names(suggest(model, data, 5))} & {'objects/missing.png', *again}
    write_corrected(data, 'objects/missing.png', np.zeros((SIDE, SIDE), np.uint8))
    found = suggest(model, data, 4)
    assert {*names(found)}-{*SURE} == {'objects/checked.png', 'objects/thin.png', 'backgrounds/alarm.png'}


def test_same_seed_same_list(model, data):
    assert suggest(model, data, 8, seed=3) == suggest(model, data, 8, seed=3)


def test_order_of_files_means_nothing(model, data, tmp_path):
    every = [*pile().items()]
    turned = {f'{name.split("/")[0]}/{i:03}.png': a for i, (name, a) in enumerate(reversed(every))}
    before = dict(zip(turned, [name for name, _ in reversed(every)]))
    write(tmp_path/'turned', turned)
    found = {before[name] for name in names(suggest(model, tmp_path/'turned', 4))}
    assert found == {*names(suggest(model, data, 4))}


def test_backgrounds_without_alarms_never_are(model, data, capsys):
    words = [str(model), str(data), '-n', '54', '--out', str(data/'list.csv')]
    assert bcd_suggest(words) == 0
    out, err = capsys.readouterr()
    assert '44 of 54: all other backgrounds are without false alarms' in err
    table = pd.read_csv(data/'list.csv')
    objects = [n for n in pile() if n.startswith('objects/')]
    assert sorted(table.picture) == sorted([*objects, 'backgrounds/alarm.png'])
    listed = out[:out.index('now correct')].splitlines()
    assert listed[0].split() == ['picture', 'why', 'gain'] and len(listed) == 46


def test_what_cannot_be_corrected_is_left_out(model, data, capsys):
    tifffile.imwrite(data/'objects/stack.tif', np.stack([picture('thin')]*2), photometric='minisblack')
    (data/'objects/broken.png').write_bytes(b'no picture')
    write(data, {'objects/wide.png': picture('checked')[:20], 'objects/tiny.png': picture('sure')[12:17, 12:19]})
    assert bcd_suggest([str(model), str(data), '-n', '5']) == 2
    out, err = capsys.readouterr()
    assert len(out[:out.index('now correct')].splitlines()) == 6 and 'stack' not in out
    assert 'stack.tif holds 2 pictures: give each of them a file of its own' in err and 'broken.png' in err


def test_one_picture(model, tmp_path):
    write(tmp_path, {'objects/1.png': picture('checked')})
    assert names(suggest(model, tmp_path, 1)) == ['objects/1.png']


def test_fewer_pictures_than_usual(model, tmp_path, capsys):
    "Without a number all are named, and that is said; a number that was typed is meant."
    write(tmp_path, {f'objects/{i}.png': picture('checked', i) for i in range(3)} | {'backgrounds/0.png': picture('')})
    assert bcd_suggest([str(model), str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert sorted(line.split()[0] for line in out.splitlines()[1:4]) == [f'objects/{i}.png' for i in range(3)]
    assert '4 pictures have no corrected mask yet: these are all (10 are the default)' in err and '3 of 4: all' in err
    assert {*names(suggest(model, tmp_path))} == {f'objects/{i}.png' for i in range(3)}
    assert bcd_suggest([str(model), str(tmp_path), '-n', '10']) == 2
    assert '10 pictures are wanted, and 4 have no corrected mask yet' in capsys.readouterr().err


def test_cut_off_objects_are_not_asked_for():
    "Corners of objects at the edge of a picture are most doubtful, and a whole object has more to teach."
    looks = [Look(f'objects/{i:02}.png', False, .9, .01, [np.array([0., 1])]) for i in range(6)]
    looks += [Look(f'objects/{i:02}.png', False, .4, .10, [np.array([9., 1])]) for i in range(6, 20)]
    found = chosen_of(looks, np.arange(20), 1, 0)
    assert found[0].picture >= 'objects/06.png' and found[0].gain == pytest.approx(.4), found


def test_what_stands_for_many():
    "It is said of what is less unsure than half of the pictures."
    looks = [Look(f'objects/{i:02}.png', False, .2+.5*(i > 8), .1, [np.array([9.*(i > 8), 1])]) for i in range(17)]
    found = {s.picture > 'objects/08.png': s.why for s in chosen_of(looks, np.arange(17), 2, 0)}
    assert found == {False: WHY['unsure'], True: WHY['unsure']} # half of the doubts are .2
    looks += [Look('objects/17.png', False, .7, .1, [np.array([9., 1])])]*2
    found = {s.picture > 'objects/08.png': s.why for s in chosen_of(looks, np.arange(19), 2, 0)}
    assert found == {False: WHY['typical'], True: WHY['unsure']}


def test_the_next_step(model, data, tmp_path, monkeypatch, capsys):
    "The lines that are printed are commands which do what they say."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'run').mkdir()
    (tmp_path/'model').rename(tmp_path/'run/model')
    write(tmp_path/'data', {'masks/thin.png': picture('thin')})
    assert bcd_suggest(['run', 'data', '-n', '4']) == 0
    review, *predict = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith('  bcd_')]
    assert review == ['bcd_review', 'run', 'data', '--number', '4']
    assert [words[:3] for words in predict] == [['bcd_predict', 'run/model', f'data/{pile}'] for pile in
                                                ('objects', 'backgrounds')]
    assert bcd_predict(predict[1][1:]) == 0 and (tmp_path/'OUT/labelstudio/tasks.json').is_file()
    for words, pictures in ((['--out', 'a list.csv'], ['a list.csv']), (['--seed', '1'], ['LIST'])):
        assert bcd_suggest(['run', 'data', '-n', '4', '--key', 'k', *words]) == 0
        review, *predict = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if '  bcd_' in line]
        assert review == ['bcd_review', 'run', 'data', '--pictures', *pictures, '--key', 'k']
        assert all(words[-2:] == ['--key', 'k'] for words in predict)


@pytest.mark.parametrize('words, said', [
    (['data', '-n', '55'], 'data: 55 pictures are wanted, and 54 have no corrected mask yet: ask for at most 54.'),
    (['data', '-n', '0'], '-n: 0 is not possible: it must be at least 1'),
    (['data', '--seed', '-1'], '--seed: -1 is not possible: it must be at least 0'),
    (['data/objects'], 'objects holds neither objects/ nor backgrounds/'),
    (['nowhere'], 'nowhere holds neither objects/ nor backgrounds/'),
    (['data', '--out', 'nowhere/list.csv'], 'nowhere is not a folder'),
    (['data', '--out', 'data/objects/thin.png'], 'thin.png')])
def test_words(model, data, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    try:
        status = bcd_suggest(['model', *words])
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    assert status == 2 and said in err and err.startswith('error: ') and err.count('\n') == 1


def test_no_model(data, capsys):
    assert bcd_suggest([str(data), str(data)]) == 2
    assert 'is no model folder: expected model.json' in capsys.readouterr().err


def test_all_corrected(model, tmp_path, capsys):
    write(tmp_path, {'objects/1.png': picture('sure')})
    write_corrected(tmp_path, 'objects/1.png', np.zeros((SIDE, SIDE), np.uint8))
    assert bcd_suggest([str(model), str(tmp_path)]) == 2
    assert 'every picture has a corrected mask already' in capsys.readouterr().err
