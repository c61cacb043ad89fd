"Masks that are learned from: in folders, in tables, as arrays; their pictures are never scored."
import json
import re
import numpy as np
import pytest
from bcd_fast import Segmenter
from bcd_fast.core import InputError
from bcd_fast.data.bags import read_bags
from bcd_fast.data.corrected import write_corrected
from bcd_fast.data.datasets import load_dataset
from bcd_fast.data.folders import read_folder
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments.runs import evaluate_run, resume_run, run_experiment
from bcd_fast.segmenter import bags_of
from bcd_fast.training.windows import WindowBatches, WindowLoader, masks_as_seen
from PIL import Image
from types import SimpleNamespace

TINY = ['trainer.epochs=1','trainer.steps=2','trainer.bs=4','trainer.paste=2','model.width=4','bar=false']
SHAPE, N = (32,40), 12

def disc(i): # -> (h,w) bool
    rows, columns = np.mgrid[:SHAPE[0],:SHAPE[1]]
    return (rows-12-i%6)**2+(columns-14-i)**2<36

def shown(i, with_disc): # -> (h,w) uint8
    grays = 90+20*np.random.default_rng(2*i+with_disc).standard_normal(SHAPE)
    return (grays+90*disc(i)*with_disc).clip(0, 255).astype(np.uint8)

def save(path, a):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path)

def write_set(folder, masks=(0,1,2)): # numbers of object pictures that have a mask
    for i in range(N):
        save(folder/f'objects/{i:02}.png', shown(i, True))
        save(folder/f'backgrounds/{i:02}.png', shown(i, False))
    for i in masks:
        save(folder/f'masks/{i:02}.png', disc(i).astype(np.uint8)*255)
    return folder

def settings(folder, *words):
    return compose_config(['experiment=folder','recipe=whole',f'data.path={folder}','data.masks=use',*TINY,*words])

def silent(text):
    "Nobody listens."

def names_of(bags, pile):
    return [s.path.name for s in getattr(bags, pile).sources]

def corrected_mask(i):
    mask = np.where(disc(i), 255, 0).astype(np.uint8)
    mask[:, 20:] = 127
    return mask

@pytest.fixture(scope='module')
def used(tmp_path_factory):
    "A run that has learned from four masks of objects, one of them empty, and one of a background."
    top, said = tmp_path_factory.mktemp('used'), []
    data = write_set(top/'data')
    save(data/'masks/05.png', np.zeros(SHAPE, np.uint8))
    save(data/'masks/backgrounds/07.png', np.zeros(SHAPE, np.uint8))
    write_corrected(data, 'objects/02.png', corrected_mask(2))
    metrics, _ = run_experiment(settings(data), 'folder', top/'run', said.append)
    return SimpleNamespace(top=top, data=data, run=top/'run', metrics=metrics, said=said)

def test_the_run_says_what_it_learned_from(used):
    line, = (s for s in used.said if 'masks that are learned from' in s)
    share = (np.asarray(corrected_mask(2))==127).mean()/5
    assert line == (f'4 of 12 object pictures have masks that are learned from; 1 of 12 backgrounds were looked at; '
                    f'{share:.1%} of the pixels of these masks are unknown')
    for name in ('report.html','model/README.md'):
        assert '4 of 12 object pictures have masks that were learned from' in (used.run/name).read_text(), name
    assert 'without a single mask' not in (used.run/'model/README.md').read_text()

def test_nothing_is_scored_and_that_is_said(used):
    assert used.metrics['iou'] is None and used.metrics['ap'] is None
    assert used.metrics['unscored'].startswith('no scores: all masks were learned from')
    assert used.metrics['unscored'] in used.said
    for name in ('report.html','model/README.md'):
        assert 'no scores: all masks were learned from' in (used.run/name).read_text(), name
    assert 'iou' not in (used.run/'history.csv').read_text().splitlines()[0]
    again = evaluate_run(used.run)
    assert again['iou'] is None and again['unscored'] == used.metrics['unscored']

def test_what_has_a_mask_and_was_not_learned_from_is_scored(tmp_path):
    "Masks of all object pictures but the corrected ones; then of some of those that are held out."
    data, said, words = write_set(tmp_path/'data', range(2, N)), [], ['data.masks=score']
    for i in (0, 1):
        write_corrected(data, f'objects/{i:02}.png', corrected_mask(i))
    metrics, _ = run_experiment(settings(data, *words), 'folder', tmp_path/'run', said.append)
    bags = read_bags(data)
    assert bags.notes == [] and len(bags.objects) == 10 and metrics['n_test'] == 2
    assert metrics['iou'] is not None and metrics['unscored'] is None and 'no scores' not in ' '.join(said)
    test = bags.indices()['test']
    (data/'masks'/bags.objects.sources[test[0]].path.name).unlink()
    write_corrected(data, 'objects/00.png', corrected_mask(0)) # the same again
    said = []
    metrics, _ = run_experiment(settings(data, *words), 'folder', tmp_path/'again', said.append)
    assert metrics['iou'] is not None
    assert 'scores are of 1 of 2 held-out pictures with the object: the others have no mask.' in said
    assert any('9 of 10 object pictures have a mask for scores' in line for line in said)
    assert 'scores are of 1 of 2 held-out pictures' in (tmp_path/'again/report.html').read_text()
    (data/'masks'/bags.objects.sources[test[1]].path.name).unlink()
    valid = {bags.objects.sources[i].path.name for i in bags.indices()['valid']}
    for name in valid:
        (data/'masks'/name).unlink()
    metrics, _ = run_experiment(settings(data, *words), 'folder', tmp_path/'none', said.append)
    assert metrics['iou'] is None and metrics['unscored'].startswith('no scores: ') and metrics['unscored'] in said


def test_masks_of_some_rows_are_scored(tmp_path):
    "Of a table, too; the method on squares wants all."
    data = write_set(tmp_path/'data', range(6))
    rows = [f'objects/{i:02}.png,1,' + f'masks/{i:02}.png'*(i < 6) for i in range(N)]
    rows += [f'backgrounds/{i:02}.png,0,' for i in range(N)]
    (data/'table.csv').write_text('\n'.join(['path,label,mask', *rows]))
    bags = read_bags(data/'table.csv')
    assert [bags.truth(i) is None for i in range(N)] == [False]*6+[True]*6
    assert len(bags.notes) == 1 and '6 of 12 object pictures have a mask for scores' in bags.notes[0]
    assert 'so no scores are made' in read_folder(data/'table.csv').notes[0]


def test_files_of_the_run_know_the_pictures(used):
    metrics = json.loads((used.run/'metrics.json').read_text())['learned_masks']
    assert (metrics['objects'], metrics['of_objects'], metrics['backgrounds'], metrics['of_backgrounds']) == (4,12,1,12)
    assert sorted(metrics['names']) == ['backgrounds/07.png', *(f'objects/{i}.png' for i in ('00','01','02','05'))]
    learned = json.loads((used.run/'model/model.json').read_text())['learned']
    assert learned['objects'] == 4 and len(set(learned['files'])) == len(set(learned['numbers'])) == 5

def test_eval_leaves_out_what_was_learned_from(used, call, tmp_path):
    other = write_set(tmp_path/'other', range(N))
    for what in ('objects','masks'): # known by what they show, whatever they are called and however they are packed
        (other/f'{what}/00.png').rename(other/f'{what}/first.png')
    with Image.open(other/'objects/01.png') as im:
        im.save(other/'objects/01.png', compress_level=0)
    status, out, err = call('bcd_eval', used.run, other, '--out', tmp_path/'eval', '--worst', 0)
    assert status==0 and out.startswith('8 pictures of objects, 11 backgrounds'), err
    assert '5 of the pictures are left out: the model has learned from their masks' in err
    table = (tmp_path/'eval/per_picture.csv').read_text()
    assert '03.png' in table and not re.search(r'^(first|01|02|05)\.png,objects', table, re.M)

def test_eval_of_nothing_but_these_says_so(used, call, tmp_path):
    status, out, err = call('bcd_eval', used.run, write_set_of(tmp_path/'same', (0,1,2)), '--out', tmp_path/'eval')
    assert status==2 and not out
    assert 'none of the 3 pictures' in err and 'learned from their masks' in err

def write_set_of(folder, numbers):
    for i in numbers:
        save(folder/f'objects/{i:02}.png', shown(i, True))
        save(folder/f'masks/{i:02}.png', disc(i).astype(np.uint8)*255)
    return folder

def test_corrected_wins_and_test_masks_are_never_read(tmp_path):
    data = write_set(tmp_path/'data')
    before = read_bags(data, use=True).fingerprint()
    save(data/'test_masks/03.png', disc(3).astype(np.uint8)*255)
    save(data/'test_objects/03.png', shown(3, True))
    assert read_bags(data, use=True).fingerprint() == before
    write_corrected(data, 'objects/01.png', corrected_mask(1))
    bags = read_bags(data, use=True)
    assert sorted(names_of(bags, 'corrected')) == ['00.png','01.png','02.png']
    drawn = bags.drawn(names_of(bags, 'corrected').index('01.png'))
    assert np.isnan(drawn[:,20:]).all() and (drawn[:,:20] == disc(1)[:,:20]).all()
    assert names_of(bags, 'objects') == [f'{i:02}.png' for i in range(3, N)]
    assert masks_as_seen(bags, 'valid') == {}

def test_windows_come_with_the_masks(tmp_path):
    bags = read_bags(write_set(tmp_path/'data'), use=True)
    for x, b, k, m, z in WindowLoader(bags, 'train', WindowBatches(4, 2, flips=False)):
        assert len(x) == len(b) == 4 and len(k) == len(m) == 2 and not len(z)
        for image, mask in zip(k, m):
            assert image[0][mask[0] == 1].mean() > image[0][mask[0] == 0].mean()+.2

def test_masks_of_scores_stay_as_they_were(tmp_path):
    data = write_set(tmp_path/'data', range(N))
    bags = read_bags(data)
    assert bags.corrected is None and not bags.learned
    assert len(masks_as_seen(bags, 'test')) == len(bags.indices()['test']) > 0

def test_where_all_have_masks_some_are_held_back(tmp_path):
    data, said = write_set(tmp_path/'data', range(N)), []
    metrics, _ = run_experiment(settings(data), 'folder', tmp_path/'run', said.append)
    assert metrics['learned_masks']['objects'] == 9 and metrics['unscored'] is None
    assert 0 <= metrics['ap'] <= 1
    assert any(s.startswith('left out: 3 masks of object pictures') for s in said)
    held = {f'objects/{i:02}.png' for i in range(N)}-{*metrics['learned_masks']['names']}
    bags = read_bags(data, use=True)
    assert {f'objects/{name}' for name in names_of(bags, 'objects')} == held

def test_a_table_names_masks_of_both_piles(tmp_path):
    data = write_set(tmp_path/'data')
    save(data/'empty.png', np.zeros(SHAPE, np.uint8))
    rows = [f'objects/{i:02}.png,object,{"masks/02.png" if i==2 else ""}' for i in range(N)]
    rows += [f'backgrounds/{i:02}.png,background,{"empty.png" if i==4 else ""}' for i in range(N)]
    (data/'table.csv').write_text('\n'.join(['path,label,mask',*rows]))
    bags = read_bags(data/'table.csv', use=True)
    assert names_of(bags, 'corrected') == ['04.png','02.png']
    assert [int((bags.drawn(i) == 1).sum()) for i in range(2)] == [0, disc(2).sum()]
    assert (bags.learned['objects'], bags.learned['backgrounds']) == (1,1)
    (data/'table.csv').write_text('\n'.join(['path,label',*(row.rsplit(',', 1)[0] for row in rows)]))
    with pytest.raises(InputError, match='names no mask to learn from'):
        read_bags(data/'table.csv', use=True)

@pytest.mark.parametrize('change', ['masks','corrected'])
def test_a_stopped_run_does_not_go_on_with_other_masks(tmp_path, monkeypatch, change):
    from bcd_fast.training import checkpoints
    data = write_set(tmp_path/'data')
    write_corrected(data, 'objects/04.png', corrected_mask(4))
    write = checkpoints.write_state
    def stop(path, state):
        write(path, state)
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, 'write_state', stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(settings(data), 'folder', tmp_path/'run', silent)
    if change=='masks':
        save(data/'masks/01.png', disc(2).astype(np.uint8)*255)
    else:
        write_corrected(data, 'objects/04.png', corrected_mask(5))
    with pytest.raises(InputError, match='have changed'):
        resume_run(tmp_path/'run', silent)

def learned_of(masks, objects=None): # -> names or numbers of the pictures, share of their pixels that is unknown
    arrays = np.stack([shown(i, True) for i in range(N)])
    backgrounds = np.stack([shown(i, False) for i in range(N)])
    d = settings('unused').data
    bags = bags_of(d, arrays if objects is None else objects, backgrounds, masks)
    drawn = [bags.drawn(i) for i in range(len(bags.corrected))]
    found = [[i for i in range(N) if np.array_equal(m == 1, disc(i))] for m in drawn]
    return bags, found, np.isnan(drawn).mean()

def test_arrays_lists_and_dicts(tmp_path):
    some = [disc(i) if i in (1,4) else None for i in range(N)]
    for masks in (some, [m if m is None else m.astype(float) for m in some], {1: disc(1), 4: disc(4)}):
        bags, found, unknown = learned_of(masks)
        assert found == [[1],[4]] and unknown == 0 and len(bags.objects) == N-2
    files = write_set(tmp_path/'data')/'objects'
    of_files = [*(tmp_path/'data/masks').glob('0[12].png')]
    for masks in (tmp_path/'data/masks', of_files, {'01.png': disc(1), '02': disc(2)}):
        bags, found, _ = learned_of(masks, files)
        assert [[1],[2]] == found[-2:] and names_of(bags, 'corrected')[-2:] == ['01.png','02.png']

def test_unknown_pixels_of_arrays():
    half = np.where(disc(3), 255, 0).astype(np.uint8)
    half[:,-10:] = 127
    hidden = np.zeros(SHAPE, bool)
    hidden[:,-10:] = True
    decimals = np.where(hidden, np.nan, disc(3).astype(float))
    for mask in (half, decimals, np.ma.masked_array(disc(3).astype(np.uint8), hidden)):
        bags, found, unknown = learned_of({3: mask})
        assert found == [[3]] and unknown == pytest.approx(.25)
        assert bags.learned['unknown'] == pytest.approx(.25)

def test_segmenter_learns_from_masks(tmp_path):
    objects = np.stack([shown(i, True) for i in range(N)])
    backgrounds = np.stack([shown(i, False) for i in range(N)])
    tiny = {word.split('=')[0].replace('.', '__'): int(word.split('=')[1]) for word in TINY[:-1]}
    made = Segmenter.fit(objects, backgrounds, {3: disc(3)}, tmp_path/'run', use_masks=True, bar=False, **tiny)
    assert made.about['learned']['objects'] == 1 and made.metrics['unscored']
    data = write_set_of(tmp_path/'data', range(2, 6))
    from bcd_fast.commands.eval import evaluate_folder
    found = evaluate_folder(tmp_path/'run', data)
    assert found['pictures'] == 3 and 'learned from their masks' in ' '.join(found['notes'])

def test_what_cannot_be_is_refused(tmp_path):
    data = write_set(tmp_path/'data')
    for words, why in ((['recipe=fast'], 'needs recipe=whole'), (['supervised=true'], 'learns from all true masks'),
                       (['data.masks=used'], 'did you mean use')):
        with pytest.raises(InputError, match=re.compile(why, re.I)):
            settings(data, *words)
    with pytest.raises(InputError, match='means nothing to data=digits'):
        compose_config(['data=digits','data.masks=use'])
    with pytest.raises(InputError, match='needs recipe=whole'):
        load_dataset('folder', str(data), masks='use')
    for masks in (None, [None]*N, {}):
        with pytest.raises(InputError, match='there are no masks'):
            learned_of(masks)
    with pytest.raises(InputError, match="'99' is the number, path or name of 0 of the objects"):
        Segmenter.fit(data/'objects', data/'backgrounds', {'99': disc(1)}, tmp_path/'run', use_masks=True)
    with pytest.raises(InputError, match='3 masks for 12'):
        learned_of([disc(i) for i in range(3)])
    save(data/'masks/01.png', np.zeros((9,9), np.uint8))
    with pytest.raises(InputError, match='they must be equal'):
        read_bags(data, use=True)
    (data/'masks/01.png').write_bytes(b'none')
    with pytest.raises(InputError, match='01.png cannot be read'):
        read_bags(data, use=True)
