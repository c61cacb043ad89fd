"A model says what it is for: damaged files, pictures of other numbers and sizes are refused in a sentence."
import json, random
import numpy as np, pytest, tifffile, torch
from PIL import Image
from bcd_fast.commands.eval import bcd_eval
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.core import InputError
from bcd_fast.data.formats import Picture
from bcd_fast.data.normalisation import Normalisation, fit_normalisation
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction import predict, tiles
from bcd_fast.prediction.models import NEW, OLDER, FileNumbers, load_model, save_model, write_about
from bcd_fast.segmenter import Segmenter

EIGHT = np.random.default_rng(0).integers(0, 256, (48, 40), np.uint8)
SCENE = np.random.default_rng(1).integers(0, 256, (300, 200), np.uint8)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "The folder of a model of bytes whose masks differ from pixel to pixel."
    torch.manual_seed(0)
    masker = make_masker('small', 4)
    with torch.no_grad():
        masker.head.weight.mul_(20)
    how = fit_normalisation('auto', [Picture(EIGHT[None])])
    folder = tmp_path_factory.mktemp('model')
    return save_model(folder, masker.eval(), 64, {}, numbers=FileNumbers(how))


def rewritten(model, folder, **changes):
    "The same model that says something else, as somebody would write it who can make sums."
    folder.mkdir(exist_ok=True)
    (folder/'model.safetensors').write_bytes((model/'model.safetensors').read_bytes())
    write_about(folder, json.loads((model/'model.json').read_text()) | changes)
    return folder


def flipped(data, bit):
    "The same bytes with another bit."
    data = bytearray(data)
    data[bit//8] ^= 1 << bit % 8
    return bytes(data)


@pytest.mark.parametrize('name, many', (('model.json', 300), ('model.safetensors', 100)))
def test_no_flipped_bit_is_taken(model, tmp_path, name, many):
    for n in ('model.json', 'model.safetensors'):
        (tmp_path/n).write_bytes((model/n).read_bytes())
    good = (model/name).read_bytes()
    bits = random.Random(0).sample(range(8*len(good)), many)
    if name == 'model.json': # the version above all
        at = 8*good.index(b'model 3')
        bits += range(at, at+56)
    for bit in bits:
        (tmp_path/name).write_bytes(flipped(good, bit))
        with pytest.raises(InputError):
            load_model(tmp_path)


@pytest.mark.parametrize('text', (
    b'', b'\xff\xfe{}', b'[]', b'7', b'null', b'{"format": []}', b'[' * 100_000, b'{"a":' * 50_000,
    b'{"format": "bcd_fast model 3"}', b'{"a": 1, "a": 1}', b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}',
    b'{"a": ' + b'9'*10_000 + b'}', b' ' * 2**23 + b'{}'), ids=range(15))
def test_what_is_no_model_is_refused(tmp_path, text):
    (tmp_path/'model.json').write_bytes(text)
    with pytest.raises(InputError, match='model.json'):
        load_model(tmp_path)


def test_every_field_refuses_other_kinds(model, tmp_path):
    "Deep, huge and of any kind: an error in a sentence of one line, whatever stands where."
    about = json.loads((model/'model.json').read_text())
    deep = []
    for _ in range(500):
        deep = [deep]
    for name in set(about) - {'digest'}:
        for value in (deep, [[]], {'a': deep}, -1, 10**400, 'x', 1e300, True):
            fine = name in ('seed', 'nodata', 'sha256', 'clusters', 'versions', 'false_alarms', 'mirrored', 'refined')
            if not fine or type(value) is not type(about[name]) and about[name] is not None:
                folder = rewritten(model, tmp_path/'other', **{name: value})
                with pytest.raises(InputError) as e:
                    load_model(folder)
                assert len(str(e.value)) < 600 and '\n' not in str(e.value)


def test_older_models_are_read_and_take_everything(model, tmp_path):
    about = json.loads((model/'model.json').read_text())
    folder = rewritten(model, tmp_path/'other')
    old = {k: v for k, v in about.items() if k not in NEW} | dict(format=OLDER)
    (folder/'model.json').write_text(json.dumps(old))
    masks = Segmenter(folder).predict(np.stack([EIGHT.astype(np.uint16)]*2))
    assert len(masks) == 2
    for more in NEW:
        (folder/'model.json').write_text(json.dumps(old | {more: about[more]}))
        with pytest.raises(InputError, match='model.json'):
            load_model(folder)


def test_a_network_that_does_not_fit_is_not_built(model, tmp_path, monkeypatch):
    folder = rewritten(model, tmp_path/'other', masker=dict(name='unet', width=1024, channels=1024))
    monkeypatch.setattr('bcd_fast.prediction.models.free_memory', lambda: 2.**33)
    with pytest.raises(InputError, match='8,192 MB are free'):
        load_model(folder)
    monkeypatch.setattr('bcd_fast.prediction.models.free_memory', lambda: float('inf'))
    with pytest.raises(InputError, match='does not hold the weights'): # the file is far too small
        load_model(folder)


def as_files(folder, a):
    "The same picture in the types that files have, whether it can be taken, and why not."
    wide, unit = 257*a.astype(np.uint16), a.astype(np.float32)/255
    taken = dict(eight=a, wide=wide, shifted=a.astype(np.uint16) << 8, floats=a.astype(np.float32), unit=unit)
    refused = dict(twelve=16*a.astype(np.uint16)+3, dark=a.astype(np.uint16)//2, sixteen=(wide//3*2)+1,
                   signed=a.astype(np.int16), hard=(unit > .5).astype(np.float32), half=unit**2, minus=-unit)
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (taken | refused).items():
        tifffile.imwrite(folder/f'{name}.tif', values)
    Image.fromarray(wide).save(folder/'wide_png.png')
    return [*taken, 'wide_png'], [*refused]


@pytest.mark.parametrize('by_rows', (False, True))
def test_only_the_numbers_of_the_training_pictures_are_taken(model, tmp_path, monkeypatch, capsys, by_rows):
    taken, refused = as_files(tmp_path/'in', SCENE)
    if by_rows:
        monkeypatch.setattr(tiles, 'SMALL', 16)
    status = bcd_predict([str(model), str(tmp_path/'in'), '--out', str(tmp_path/'out'), '--write', 'probabilities'])
    said = capsys.readouterr().err.splitlines()
    assert status == 2 and sorted(line.split('.tif')[0].strip() for line in said[1:]) == sorted(refused)
    assert all('holds numbers from' in line and 'trained on' in line and 'save it' in line for line in said[1:])
    found = {p.name.split('.')[0]: tifffile.imread(p).astype(int) for p in (tmp_path/'out').glob('*.tif')}
    assert sorted(found) == sorted(taken) and found['eight'].std() > 100
    assert all(abs(m-found['eight']).max() <= 700 for m in found.values()) # of 65535: bfloat16


def test_arrays_too(model):
    s = Segmenter(model)
    stack = np.stack([EIGHT, EIGHT[::-1]])
    expected = s.predict(stack, probabilities=True)
    for other in (257*stack.astype(np.uint16), stack.astype(np.float64), stack.astype(int), stack/255):
        assert np.allclose(s.predict(other, probabilities=True), expected, atol=1e-3)
    for other in (stack.astype(np.uint16), stack.astype(np.int32), stack > 99.5, np.asarray(stack > 99, float)):
        if other.dtype == bool: # 1 bit is black and white
            s.predict(other)
            continue
        with pytest.raises(InputError, match=r'images\[0\] holds numbers from'):
            s.predict(other)


def test_evaluation_leaves_them_out(model, tmp_path, capsys):
    taken, refused = as_files(tmp_path/'objects', EIGHT)
    (tmp_path/'masks').mkdir()
    for name in taken+refused:
        Image.fromarray(np.where(EIGHT > 128, 255, 0).astype(np.uint8)).save(tmp_path/f'masks/{name}.png')
    status = bcd_eval([str(model), str(tmp_path), '--out', str(tmp_path/'out'), '--worst', '0'])
    found = json.loads((tmp_path/'out/eval.json').read_text())
    assert status == 2 and len(found['left_out']) == len(refused), capsys.readouterr().err
    assert found['pictures'] == len(taken)


@pytest.mark.parametrize('name', ('local', 'mean16'))
def test_ratios_take_any_numbers(model, tmp_path, name):
    how = fit_normalisation(name, [Picture(EIGHT[None])])
    changes = dict(normalisation=how.to_dict(), numbers=how.files.to_dict())
    s = Segmenter(rewritten(model, tmp_path/'other', **changes))
    expected = s.predict(EIGHT[None], probabilities=True)[0]
    for other in (EIGHT.astype(np.uint16)*5, EIGHT.astype(np.float32)/1000):
        assert np.allclose(s.predict(other[None], probabilities=True)[0], expected, atol=2e-3)


def test_sizes_are_bounded(model, tmp_path):
    "A scale that a picture cannot have is refused; a long picture that is enlarged goes through the masker in bands."
    s = Segmenter(rewritten(model, tmp_path/'other', scale=500.))
    with pytest.raises(InputError, match=r'images\[0\] has 48x40 pixels, and the model would see it 500 times larger'):
        s.predict(EIGHT[None])
    assert s.predict(EIGHT[None, :2, :2])[0].shape == (2, 2)
    s = Segmenter(rewritten(model, tmp_path/'other', scale=None))
    with pytest.raises(InputError, match='512 times larger'):
        Segmenter(rewritten(model, tmp_path/'large', scale=None, size=1024)).predict(np.zeros((1, 2, 6000), np.uint8))
    row = np.tile(EIGHT[:2], (1, 60))
    assert s.predict(row[None])[0].shape == (2, 2400)


@pytest.mark.parametrize('name', ('unit', 'mean16'))
def test_bands_are_the_whole(model, tmp_path, monkeypatch, name):
    how = Normalisation(name, 0., 255.)
    s = Segmenter(rewritten(model, tmp_path/'other', scale=4., normalisation=how.to_dict()))
    whole = s.predict(EIGHT[None], probabilities=True)[0]
    monkeypatch.setattr(predict, 'ENLARGED', 100)
    assert np.allclose(s.predict(EIGHT[None], probabilities=True)[0], whole, atol=.02)


SENSOR = np.random.default_rng(2).integers(100, 4096, (300, 200)).astype(np.uint16) # 12 bits
HEIGHTS = np.random.default_rng(3).normal(300, 40, (300, 200)).astype(np.float32)


@pytest.mark.parametrize('by_rows', (False, True))
@pytest.mark.parametrize('trained, given, fits', (
    (SENSOR, SENSOR//100, True), (SENSOR, SENSOR.astype(np.int32), True), (SENSOR, SENSOR.astype(np.float32), True),
    (SENSOR, 16*SENSOR, False), (SENSOR, SCENE, False), (SENSOR, SCENE > 128, False), (16*SENSOR, SENSOR, True),
    (HEIGHTS, .5*HEIGHTS, True), (HEIGHTS, HEIGHTS.astype(np.int16), False), (HEIGHTS, HEIGHTS/1e5, False),
    (HEIGHTS/1e3, HEIGHTS, False), (257*SCENE.astype(np.uint16), SCENE, True), (SCENE/np.float32(255), SCENE, True)))
def test_models_of_other_numbers(model, tmp_path, monkeypatch, by_rows, trained, given, fits):
    how = fit_normalisation('auto', [Picture(trained[None], kind=trained.dtype.name)])
    changes = dict(normalisation=how.to_dict(), numbers=how.files.to_dict())
    (tmp_path/'in').mkdir()
    tifffile.imwrite(tmp_path/'in/a.tif', given)
    monkeypatch.setattr(tiles, 'SMALL', 16 if by_rows else 2**24)
    done = predict.predict_folder(rewritten(model, tmp_path/'other', **changes), tmp_path/'in', tmp_path/'out')
    assert (done['written'], len(done['unreadable'])) == (int(fits), int(not fits)), done
