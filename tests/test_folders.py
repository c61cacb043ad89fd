"Folders, tables and masks as people have them: what is read, what is left out, and what is said of it."
import errno
import os
import unicodedata
import numpy as np
import pytest
import tifffile
import torch
from bcd_fast.commands.check import check_masks, read_sets
from bcd_fast.core import InputError
from bcd_fast.data import bags, folders
from bcd_fast.data.bags import read_bags
from bcd_fast.data.folders import Windows, find_files, fitting, mask_file, read_folder, walk_files
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.segmenter import bags_of, dataset_of, to_pictures
from PIL import Image
from conftest import posix

SHAPE = 40, 48
ROWS, COLUMNS = np.mgrid[:SHAPE[0], :SHAPE[1]]
DISC = (ROWS-18)**2+(COLUMNS-22)**2 < 100
SEVEN = np.where((ROWS % 8 < 5) & (COLUMNS % 16 < 9), ROWS//8+1, 0) # 1 to 5, and 0 between
SOFT = np.exp(-((ROWS-18)**2+(COLUMNS-22)**2)/200)


def save(path, a, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path, **how)
    return path


def gray(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


def make_set(folder, n=12, masks=None, sub=''):
    "Pictures of noise; the mask of each is `masks(i)`."
    for i in range(n):
        save(folder/f'objects/{sub}{i:02}.png', gray(i))
        save(folder/f'backgrounds/{sub}{i:02}.png', gray(100+i))
        if masks:
            save(folder/f'masks/{sub}{i:02}.png', masks(i))
    return folder


def both(folder):
    "The set as windows and as whole pictures; both say the same of masks and of what is left out."
    windows, whole = read_folder(folder, windows=Windows(size=40)), read_bags(folder)
    assert windows.pictures.splitlines()[1:] == whole.pictures.splitlines()[1:]
    assert (windows.notes, windows.unreadable) == (whole.notes, whole.unreadable)
    return windows, whole


# masks

def layers(colour, alpha):
    "A picture of one colour with opacity."
    return np.dstack([np.full((*SHAPE, 3), colour, np.uint8), alpha.astype(np.uint8)*255])


def colours(code):
    "Colours as dark as a colour can be among them."
    return np.array([(0, 0, 0), (0, 0, 1), (200, 0, 0), (3, 3, 3), (0, 1, 0), (90, 90, 0)], np.uint8)[code]


def palette(code):
    im = Image.fromarray(code.astype(np.uint8)).convert('P')
    im.putpalette(colours(np.arange(6)).ravel().tolist())
    return np.asarray(im), im


PNG = {
    'one': DISC.astype(np.uint8), 'bit': DISC, 'bytes': DISC.astype(np.uint8)*255, 'seven': DISC.astype(np.uint8)*7,
    'white': layers(255, DISC), 'black': layers(0, DISC),
    'opaque': np.dstack([DISC.astype(np.uint8)*255]*3+[np.full(SHAPE, 255, np.uint8)])}


@pytest.mark.parametrize('name', PNG)
def test_a_disc(tmp_path, name):
    mask, = mask_file(save(tmp_path/'a.png', PNG[name]))
    assert (fitting(mask, 'a', SHAPE).inside == DISC).all()


MANY = {
    'labels.png': SEVEN.astype(np.uint8), 'deep.png': (SEVEN*300).astype(np.uint16), 'rgb.png': colours(SEVEN),
    'int32.tif': SEVEN.astype(np.int32), 'float.tif': SEVEN.astype(np.float32), 'int64.npy': SEVEN}


@pytest.mark.parametrize('name', MANY)
def test_labels(tmp_path, name):
    path, a = tmp_path/name, MANY[name]
    if path.suffix == '.png':
        save(path, a)
    else:
        tifffile.imwrite(path, a) if path.suffix == '.tif' else np.save(path, a)
    mask, = mask_file(path)
    assert (fitting(mask, 'a', SHAPE).inside == (SEVEN > 0)).all()


def test_codes_of_a_palette(tmp_path):
    palette(SEVEN)[1].save(tmp_path/'a.png')
    mask, = mask_file(tmp_path/'a.png')
    assert (fitting(mask, 'a', SHAPE).inside == (SEVEN > 0)).all()


def test_thin_and_small_labels():
    thin, points = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    for k in range(4):
        thin[np.arange(36), np.arange(36)+3*k] = k+1
    points[::9, ::9] = np.arange(30).reshape(5, 6)+1
    for a in (thin, points):
        assert (fitting(folders.Picture(a[None]), 'a', SHAPE).inside == (a > 0)).all()


def test_no_number_is_no_object(tmp_path):
    a = DISC.astype(np.float32)
    a[:18] = np.nan
    tifffile.imwrite(tmp_path/'a.tif', a)
    mask, = mask_file(tmp_path/'a.tif')
    assert (fitting(mask, 'a', SHAPE).inside == (DISC & (ROWS >= 18))).all()


@pytest.mark.parametrize('quality', [75, 90, 95])
def test_jpeg_by_the_half(tmp_path, quality):
    mask, = mask_file(save(tmp_path/'a.jpg', DISC.astype(np.uint8)*255, quality=quality))
    read = fitting(mask, 'a', SHAPE)
    assert read.how == 'bright' and (read.inside != DISC).mean() < .005


REFUSED = {
    'soft.png': ((SOFT*255).astype(np.uint8), r'soft.png is no mask: it has \d+ values \(\d+ to 25\d\) that'),
    'labels.jpg': (SEVEN.astype(np.uint8)*20, 'labels.jpg is no mask'),
    'photo.png': (gray(0), 'neither two values nor labels'),
    'two.png': (DISC.astype(np.uint8)+1, r'has 2 values \(1 to 2\), and no pixel of it is 0 or transparent')}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_no_mask(tmp_path, name):
    a, why = REFUSED[name]
    mask, = mask_file(save(tmp_path/name, a))
    with pytest.raises(InputError, match=why):
        fitting(mask, 'a', SHAPE)


@pytest.mark.parametrize('a, why', [
    (SOFT.astype(np.float32), 'is no mask: it has'),
    (np.where(SEVEN > 0, SEVEN, -1).astype(np.int16), 'go from -1 to 5')])
def test_what_is_no_mask_in_tiff(tmp_path, a, why):
    tifffile.imwrite(tmp_path/'a.tif', a)
    mask, = mask_file(tmp_path/'a.tif')
    with pytest.raises(InputError, match=why):
        fitting(mask, 'a', SHAPE)


def test_both_ways_read_the_same_masks(tmp_path):
    windows, whole = both(make_set(tmp_path, masks=lambda i: SEVEN.astype(np.uint8)))
    assert windows.pictures.splitlines()[1] == '12 masks: labels 1 to 5 taken as object'
    assert (whole.truth(3) == (SEVEN > 0)).all()
    assert windows.objects.masks.mean() == pytest.approx((SEVEN[:, 4:44] > 0).mean(), abs=.01)


def test_suspicious_masks_are_named(tmp_path):
    def mask(i):
        return np.full(SHAPE, 255*(i == 1), np.uint8) if i < 2 else (~DISC).astype(np.uint8)*255
    windows, _ = both(make_set(tmp_path, masks=mask))
    line = windows.pictures.splitlines()[1]
    for part in ('1 without an object (00.png)', '1 all object (01.png)', 'are they inverted'):
        assert part in line


def test_a_mask_that_is_transparent_all_over(tmp_path):
    folder = make_set(tmp_path, masks=lambda i: layers(255, DISC & (i > 0)))
    windows, whole = both(folder)
    assert '1 without an object (00.png)' in windows.pictures
    assert not whole.truth(0).any() and (whole.truth(1) == DISC).all()


def test_no_mask_stops_before_training(tmp_path):
    folder = make_set(tmp_path, masks=lambda i: DISC.astype(np.uint8)*255)
    save(folder/'masks/07.png', (SOFT*255).astype(np.uint8))
    for read in (read_folder, read_bags):
        with pytest.raises(InputError, match='07.png is no mask'):
            read(folder)
    save(folder/'masks/07.png', DISC[:30].astype(np.uint8))
    for read in (read_folder, read_bags):
        with pytest.raises(InputError, match='they must be equal'):
            read(folder)


def test_masks_that_cannot_be_read_are_said(tmp_path):
    folder = make_set(tmp_path, masks=lambda i: DISC.astype(np.uint8)*255)
    (folder/'masks/03.png').write_bytes(b'no picture')
    windows, whole = both(folder)
    assert len(windows.unreadable) == 1 and 'No scores are made' in windows.unreadable[0]
    assert windows.objects.masks is None and whole.truth(0) is None


# folders

def test_nested_folders(tmp_path):
    for sub in ('a/', 'b/c/'):
        make_set(tmp_path, 6, lambda i: (DISC if sub == 'a/' else ~DISC).astype(np.uint8), sub)
    windows, whole = both(tmp_path)
    assert len(whole.objects) == 12 and not whole.unreadable
    assert (whole.truth(2) == DISC).all() and (whole.truth(8) == ~DISC).all()


def test_companions_are_passed_over(tmp_path):
    folder = make_set(tmp_path)
    for name in ('00.tfw', '00.prj', '00.png.aux.xml', '00.xml', 'Thumbs.db', '.DS_Store', '._00.png', 'desktop.ini'):
        (folder/f'objects/{name}').write_text('x')
    (folder/'objects/.thumbnails').mkdir()
    save(folder/'objects/.thumbnails/00.png', gray(0))
    windows, whole = both(folder)
    assert not windows.unreadable and len(whole.objects) == 12


@posix
def test_all_that_is_left_out_is_named(tmp_path):
    folder = make_set(tmp_path)
    for name in ('b.dng', 'a.dng', 'notes'):
        (folder/f'objects/{name}').write_text('x')
    (folder/'objects/deep/none').mkdir(parents=True)
    os.mkfifo(folder/'objects/pipe.png')
    (folder/'objects/gone.png').symlink_to(folder/'nowhere.png')
    (folder/'objects/again').symlink_to(folder/'objects', target_is_directory=True)
    windows, _ = both(folder)
    said = '\n'.join(windows.notes+windows.unreadable)
    for part in ('objects: a.dng and 2 more left out: the suffix', 'deep/none left out: no picture in',
                 'pipe.png left out: neither', 'gone.png cannot be read', 'again left out: the link'):
        assert part in said, part
    assert len(windows.notes+windows.unreadable) == 5


def test_a_folder_that_holds_other_things_only(tmp_path):
    (tmp_path/'a.dng').write_text('x')
    with pytest.raises(InputError, match='holds no image.* a.dng left out'):
        walk_files(tmp_path, 'objects')


def test_capitals(tmp_path):
    make_set(tmp_path, masks=lambda i: DISC.astype(np.uint8))
    for what in ('objects', 'backgrounds', 'masks'):
        (tmp_path/what).rename(tmp_path/what.capitalize())
    for p in tmp_path.glob('Objects/*.png'):
        p.rename(p.with_suffix('.PNG'))
    windows, whole = both(tmp_path)
    assert len(whole.objects) == 12 and whole.truth(0) is not None
    (tmp_path/'objects').mkdir()
    with pytest.raises(InputError, match='Objects/ and objects/, which differ in capitals only'):
        find_files(tmp_path)


def test_accents_of_two_systems(tmp_path):
    make_set(tmp_path, masks=lambda i: DISC.astype(np.uint8))
    for what, form in (('objects', 'NFC'), ('masks', 'NFD')):
        (tmp_path/f'{what}/00.png').rename(tmp_path/what/unicodedata.normalize(form, 'Épave é.png'))
    _, whole = both(tmp_path)
    assert not whole.unreadable and (whole.truth(11) == DISC).all()


def test_masks_without_partners(tmp_path):
    folder = make_set(tmp_path, masks=lambda i: DISC.astype(np.uint8))
    save(folder/'masks/99.png', DISC)
    assert both(folder)[0].notes == [f'{folder}/masks: 99.png left out: a mask of no object picture.']
    save(folder/'masks/00.bmp', DISC)
    windows, whole = read_folder(folder, windows=Windows(size=40)), read_bags(folder)
    assert windows.objects.masks is None and 'two masks for 00.png, so no scores' in windows.notes[0]
    assert [whole.truth(i) is None for i in range(12)] == [True]+[False]*11 # the others are scored all the same
    assert 'two masks for 00.png, which are not scored' in whole.notes[0] and '11 of 12 object pict' in whole.notes[-1]


def test_a_picture_of_both_piles(tmp_path):
    folder = make_set(tmp_path)
    save(folder/'backgrounds/99.bmp', gray(3))
    windows, _ = both(folder)
    assert 'warning: 1 picture(s) are among objects and among backgrounds (objects/03.png = backgrounds/99.bmp)' in (
        windows.pictures)


def test_masks_in_another_folder_are_named(tmp_path):
    folder = make_set(tmp_path, masks=lambda i: DISC.astype(np.uint8))
    (folder/'masks').rename(folder/'Mask')
    assert both(folder)[0].notes == [f'{folder}: Mask/ left out: masks are looked for in masks/.']


# tables

def rows_of(folder, separator=',', name='{0}/{1:02}.png'):
    rows = [name.format(what, i)+separator+what for what in ('objects', 'backgrounds') for i in range(12)]
    return [f'path{separator}label', *rows]


@pytest.mark.parametrize('separator', [',', ';', '\t', '|'])
@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'latin-1'])
def test_separators_and_codes(tmp_path, separator, code):
    (tmp_path/'objects').mkdir()
    save(tmp_path/'objects/é.png', gray(0))
    lines = [f'Label {separator} PATH', f'Object{separator} objects\\é.png ', separator, f' 0 {separator}b.png']
    (tmp_path/'t.csv').write_bytes('\r\n'.join(lines).encode(code))
    files, said = find_files(tmp_path/'t.csv')
    assert files['objects'] == [tmp_path/'objects/é.png'] and files['backgrounds'] == [tmp_path/'b.png'] and not said


@pytest.mark.parametrize('name', ['t.tsv', 't.txt', 'T.CSV'])
def test_suffixes_of_tables(tmp_path, name):
    make_set(tmp_path)
    lines = ['sep=;', *rows_of(tmp_path, ';')] if name == 'T.CSV' else rows_of(tmp_path, '\t')
    (tmp_path/name).write_text('\n'.join(lines))
    assert len(read_bags(tmp_path/name).objects) == 12


def test_absolute_paths_and_back_slashes(tmp_path):
    make_set(tmp_path/'data')
    name = str(tmp_path/'data')+'/{0}\\{1:02}.png'
    (tmp_path/'t.csv').write_text('\n'.join(rows_of(tmp_path, name=name)))
    _, whole = both(tmp_path/'t.csv')
    assert len(whole.objects) == 12 and not whole.unreadable


WRONG = {
    'path;label\na.png;wreck': "line 2: label 'wreck'", '\n\npath,label\n,object': 'line 4: no path',
    'path,label,Path\na,object,b': 'the column path twice', 'path,label\na,b.png,object': 'line 2: 3 cells',
    'file;kind\na;object': 'no column path: expected path, label and perhaps mask, found file, kind'}


@pytest.mark.parametrize('text', WRONG)
def test_tables_that_say_nothing(tmp_path, text):
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(InputError, match=WRONG[text]):
        find_files(tmp_path/'t.csv')


def test_masks_for_some_rows(tmp_path):
    (tmp_path/'t.csv').write_text('path,label,mask\na.png,object,m.png\nb.png,object,\nc.png,background,')
    files, said = find_files(tmp_path/'t.csv')
    assert files['masks'] == [] and '1 of 2 object rows have a mask, and that of b.png has none' in said[0]


# memory

def test_a_picture_that_would_become_too_large(tmp_path):
    folder = make_set(tmp_path)
    save(folder/'objects/thin.png', gray(0, (2, 60000)))
    for fit in ('each', 'scale'):
        ds = read_folder(folder, windows=Windows(fit=fit))
        assert len(ds.unreadable) == 1 and 'thin.png has 2x60000 pixels' in ds.unreadable[0]
        assert '64x1920000' in ds.unreadable[0]
    assert len(read_bags(folder).objects) == 13


def test_only_such_pictures(tmp_path):
    for i in range(10):
        save(tmp_path/f'objects/{i}.png', gray(0, (2, 60000)))
        save(tmp_path/f'backgrounds/{i}.png', gray(i))
    with pytest.raises(InputError, match='objects give 0 readable.* 0.png has 2x60000 pixels'):
        read_folder(tmp_path, windows=Windows(fit='each'))


def test_what_does_not_fit_in_memory(tmp_path, monkeypatch):
    folder = make_set(tmp_path)
    monkeypatch.setattr(folders, 'free_memory', lambda: 10000.)
    with pytest.raises(InputError, match=r'the first 6 of 12 files would take .* GB of memory, and 1e-05 GB are free'):
        read_folder(folder)
    monkeypatch.setattr(folders, 'free_memory', lambda: 50000.)
    with pytest.raises(InputError, match='windows would take'):
        read_folder(folder)
    assert len(read_bags(folder).objects) == 12


def test_no_room_for_a_file(monkeypatch):
    monkeypatch.setattr(bags, 'IN_MEMORY', 10)
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(InputError, match='make room, or set'):
        bags.room_for(101, np.uint8)


def test_memory_is_known():
    assert 1e7 < folders.free_memory() < 1e15


# commands and Python

def test_check_says_how_masks_are_read(tmp_path, call):
    folder = make_set(tmp_path/'data', masks=lambda i: SEVEN.astype(np.uint8))
    (folder/'objects/notes.doc').write_text('x')
    status, out, err = call('bcd_check', folder)
    assert status == 1 and 'Traceback' not in err
    assert '12 masks: labels 1 to 5 taken as object' in out and 'notes.doc left out' in out
    save(folder/'masks/00.png', (SOFT*255).astype(np.uint8))
    finding, = check_masks(folder, read_sets(folder)[0])
    assert finding.level == 'problem' and '00.png is no mask' in finding.text


def test_training_says_how_masks_are_read(tmp_path, call):
    folder = make_set(tmp_path/'data', masks=lambda i: SEVEN.astype(np.uint8), sub='site/')
    (folder/'objects/notes.doc').write_text('x')
    short = ['trainer.epochs=1', 'trainer.steps=2', 'trainer.bs=4', 'model.width=4', 'bar=false']
    status, out, err = call('bcd_train', 'data=folder', f'data.path={folder}', 'hydra.run.dir=run', *short)
    assert (status, err) == (0, '') and 'notes.doc left out' in out # pictures were not left out
    assert '12 masks: labels 1 to 5 taken as object' in out


DATA = compose_config(['experiment=folder']).data


@pytest.fixture
def given(tmp_path):
    "The same pictures in all the ways in which they may be given."
    folder = make_set(tmp_path, masks=lambda i: DISC.astype(np.uint8)*7)
    (folder/'objects/Thumbs.db').write_text('x')
    arrays = {what: [np.asarray(Image.open(p)) for p in sorted((folder/what).glob('*.png'))]
              for what in ('objects', 'backgrounds', 'masks')}
    return folder, arrays


@pytest.mark.parametrize('make', [bags_of, dataset_of])
@pytest.mark.parametrize('how', ['folders', 'patterns', 'generators', 'paths', 'text', 'pillow', 'tensors', 'arrays'])
def test_given_in_python(given, make, how):
    folder, arrays = given
    ways = dict(
        folders=lambda w: folder/w, patterns=lambda w: str(folder/w/'*.png'), generators=lambda w: (folder/w).glob('*'),
        paths=lambda w: sorted((folder/w).glob('*.png')), text=lambda w: np.array([str(p) for p in ways['paths'](w)]),
        pillow=lambda w: [Image.fromarray(a) for a in arrays[w]], tensors=lambda w: [*map(torch.tensor, arrays[w])],
        arrays=lambda w: np.stack(arrays[w]))
    made = make(DATA, *(ways[how](w) for w in ('objects', 'backgrounds', 'masks')))
    assert len(made.objects) == len(made.backgrounds) == 12 and not made.unreadable
    assert '12 masks: 7 taken as object' in made.pictures
    if make is bags_of:
        assert all((made.truth(i) == DISC).all() for i in range(12))


def test_pictures_of_several_sizes():
    red = Image.new('RGBA', (7, 6), 'red')
    found, bad = to_pictures([gray(0), gray(1, (30, 20, 3)), torch.zeros(3, 9, 8), red], 'a')
    assert [p.values.shape for _, p in found] == [(1, 40, 48), (3, 30, 20), (3, 9, 8), (3, 6, 7)]
    assert not bad and [p.name for _, p in found] == ['a[0]', 'a[1]', 'a[2]', 'a[3]']
    found, bad = to_pictures([gray(0), np.zeros((2, 2, 2, 2, 2)), 'no.png'], 'a')
    assert len(found) == 1 and bad[0].startswith('a[1]: an array') and 'no.png cannot be read' in bad[1]


@pytest.mark.parametrize('images', [[], {}, None, 5, [[1, 2], [3]], '/nowhere/*.png', [None, None]])
def test_what_is_no_picture(images):
    with pytest.raises(InputError, match='^objects: '):
        to_pictures(images, 'objects')


def test_files_of_equal_names_go_together(given):
    folder, _ = given
    save(folder/'masks/00.png', np.zeros(SHAPE, np.uint8))
    back = sorted((folder/'masks').glob('*'), reverse=True)
    made = bags_of(DATA, sorted((folder/'objects').glob('*.png')), folder/'backgrounds', back)
    assert not made.truth(0).any() and made.truth(11).any()


def test_masked_arrays_and_empty_ones():
    "What a masked array hides has no data; an array without a pixel is refused in a sentence."
    a = np.ma.masked_array(np.ones((2, 32, 32), np.uint8), np.arange(2048).reshape(2, 32, 32) % 2 == 0)
    (first, second), _ = to_pictures(a, 'objects', folders.Reading())
    assert (first[1].valid == (np.arange(1024).reshape(32, 32) % 2 == 1)).all() and second[1].valid.sum() == 512
    with pytest.raises(InputError, match='it is empty'):
        to_pictures(np.zeros((2, 0, 32)), 'objects', folders.Reading())


def test_masks_that_are_black_on_white(tmp_path):
    "Bools of tifffile and masks of ImageJ are stored as numbers and shown the other way round; other TIFFs are seen."
    inside = np.zeros((32, 40), bool)
    inside[4:12, 6:30] = True
    image = np.where(inside, 255, 0).astype(np.uint8)
    tifffile.imwrite(tmp_path/'bool.tif', inside)
    tifffile.imwrite(tmp_path/'imagej.tif', image, imagej=True, photometric='miniswhite')
    tifffile.imwrite(tmp_path/'seen.tif', 255-image, photometric='miniswhite')
    tifffile.imwrite(tmp_path/'plain.tif', inside, photometric='minisblack')
    Image.fromarray(inside).save(tmp_path/'bits.tif')
    for name in ('bool', 'imagej', 'seen', 'plain', 'bits'):
        assert (fitting(mask_file(tmp_path/f'{name}.tif')[0], 'x', inside.shape).inside == inside).all(), name


@pytest.mark.parametrize('raw', (b'path,label\na.png\0,object\n', 'path,label\na.png,object\n'.encode('utf-32')))
def test_tables_with_zero_bytes(tmp_path, raw):
    (tmp_path/'t.csv').write_bytes(raw)
    with pytest.raises(InputError, match='zero bytes'):
        find_files(tmp_path/'t.csv')
