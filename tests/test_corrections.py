"Corrected masks as people leave them behind: whose they are, what is known of them, and what is said of the rest."
import os
import h5py, numpy as np, pytest, torch
from PIL import Image
from bcd_fast.commands.check import bcd_check, check_corrected, read_sets
from bcd_fast.commands.review import open_review
from bcd_fast.commands.suggest import bcd_suggest
from bcd_fast.core import InputError
from bcd_fast.data.bags import read_bags
from bcd_fast.data.corrected import corrected_of, earlier_of, sharing, write_corrected
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from bcd_fast.prediction.suggestions import suggest
from bcd_fast.review.session import Draft, draft_path, read_draft, write_draft

SHAPE, N = (24,32), 12

def gray(i, shape=SHAPE):
    "Noise."
    return np.random.default_rng(i).integers(60, 120, shape).astype(np.uint8)

def of(value, shape=SHAPE):
    "A mask of one value."
    return np.full(shape, value, np.uint8)

def save(path, a):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path)

@pytest.fixture
def data(tmp_path):
    for i in range(N):
        save(tmp_path/f'data/objects/{i:02}.png', gray(i))
        save(tmp_path/f'data/backgrounds/{i:02}.png', gray(i+N))
    return tmp_path/'data'

@pytest.fixture
def run(tmp_path):
    "A folder of a run, with an untrained model."
    net = make_masker('small', 4)
    torch.nn.init.constant_(net.head.bias, 0) # unsure of everything
    save_model(tmp_path/'run/model', net.eval(), 32, {})
    return tmp_path/'run'

def names(bags, pile='corrected'):
    return [s.path.name for s in getattr(bags, pile).sources]

def test_a_mask_of_unknown_pixels_alone_takes_no_picture_away(data):
    "It teaches nothing, and the label of its picture does."
    write_corrected(data, 'objects/00.png', of(127))
    half = of(127)
    half[:,:4] = 0
    write_corrected(data, 'objects/01.png', half)
    bags = read_bags(data)
    assert names(bags) == ['01.png'] and '00.png' in names(bags, 'objects')
    assert bags.learned['objects'] == 1 and bags.learned['unknown'] == pytest.approx(28/32)
    assert bags.notes == ['1 mask(s) without a known pixel: their pictures are learned from as if they had none.']

@pytest.mark.parametrize('suffix, shape', [('.tif', SHAPE), ('.bmp', (9,9)), ('.PNG', SHAPE)])
def test_one_mask_is_not_of_two_pictures(data, run, suffix, shape):
    save(data/f'objects/00{suffix}', gray(50, shape))
    assert read_bags(data).corrected is None # without a mask nothing is unclear
    write_corrected(data, 'objects/00.png', of(0))
    pair = ' and '.join(sorted(['objects/00.png', f'objects/00{suffix}']))
    with pytest.raises(InputError, match=f'{pair} would have one corrected mask'):
        read_bags(data)
    finding, = check_corrected(data, read_sets(data)[0])
    assert finding.text.startswith(f'1 of 2 corrected masks cannot be learned from: {pair}')
    (data/'corrected/objects/00.png').unlink()
    found, left = suggest(run/'model', data, 2*N+1)
    assert len(left) == 1 and left[0].startswith(pair) and not {s.picture for s in found} & {*pair.split(' and ')}

@pytest.mark.parametrize('top, pile', [('Corrected','objects'), ('CORRECTED','Objects'), ('corrected','OBJECTS')])
def test_capitals_of_the_folders(data, top, pile):
    write_corrected(data, 'objects/03.png', of(255))
    os.rename(data/'corrected/objects', data/f'corrected/{pile}')
    os.rename(data/'corrected', data/top)
    os.rename(data/'objects', data/'OBJECTS')
    assert corrected_of(data) == {'objects/03.png': data/top/pile/'03.png'} and names(read_bags(data)) == ['03.png']
    write_corrected(data, 'objects/03.png', of(0)) # in the same place, and the first one is kept
    assert [p.parent.parent.parent for p in earlier_of(data)] == [data/top]
    write_draft(data, 'objects/04.png', Draft(of(127)))
    assert data/top in draft_path(data, 'objects/04.png').parents and read_draft(data, 'objects/04.png', SHAPE)
    assert read_bags(data).notes == [] # neither of these counts as a mask of no picture

def test_masks_of_another_name_are_named(data):
    for name in ('00.PNG','01.tif','gone.png'):
        save(data/'corrected/objects'/name, of(0))
    note, = read_bags(data).notes
    assert 'corrected/objects/00.PNG and 2 more left out: a mask of no picture' in note

def test_where_no_corrected_picture_can_be_read(data):
    write_corrected(data, 'objects/00.png', of(0))
    (data/'objects/00.png').write_bytes(b'no picture')
    bags = read_bags(data)
    assert not bags.corrected and bags.learned == {} and len(bags.objects) == N-1
    assert '00.png cannot be read' in bags.unreadable[0]

def test_a_background_whose_mask_shows_an_object(data):
    write_corrected(data, 'backgrounds/00.png', of(0))
    assert 'warning' not in read_bags(data).pictures
    write_corrected(data, 'backgrounds/01.png', of(255))
    assert 'warning: 01.png: the mask of a background shows an object' in read_bags(data).pictures

def test_what_is_too_thin_to_be_seen_is_no_ground(tmp_path):
    "At a quarter of the resolution a line of one pixel is gone; a disc keeps its outline."
    shape = 96,128
    for i in range(N):
        save(tmp_path/f'objects/{i:02}.png', gray(i, shape))
        save(tmp_path/f'backgrounds/{i:02}.png', gray(i+N, shape))
    line, disc = of(0, shape), of(0, shape)
    line[50] = 255
    rows, columns = np.mgrid[:shape[0],:shape[1]]
    disc[(rows-48)**2+(columns-64)**2<400] = 255
    write_corrected(tmp_path, 'objects/00.png', line)
    write_corrected(tmp_path, 'objects/01.png', disc)
    bags = read_bags(tmp_path, scale=.25)
    thin, round_ = bags.drawn(0), bags.drawn(1)
    assert not (thin==1).any() and np.isnan(thin[12]).all() and (thin[:11]==0).all() and (thin[14:]==0).all()
    assert not np.isnan(round_).any() and (round_==1).mean() == pytest.approx((disc==255).mean(), rel=.05)

def write_table(data, groups):
    rows = [f'objects/{i:02}.png,object,{groups[i]},{"m.png" if i==0 else ""}' for i in range(N)]
    rows += [f'backgrounds/{i:02}.png,background,b{i},' for i in range(N)]
    save(data/'m.png', of(255))
    (data/'t.csv').write_text('\n'.join(['path,label,group,mask',*rows]))
    return data/'t.csv'

def test_pictures_of_a_group_that_is_learned_from_are_not_held_out(data):
    "Neighbours of a picture whose mask was learned from would make scores too good."
    bags = read_bags(write_table(data, ['a']*6+['b']*2+['c']*2+['d']*2), use=True)
    parts, mates = bags.indices(), [f'{i:02}.png' for i in range(1, 6)]
    of_part = {part: [names(bags, 'objects')[i] for i in numbers] for part, numbers in parts.items()}
    assert names(bags) == ['00.png'] and set(mates) <= set(of_part['train'])
    assert len(of_part['valid']) and sorted(sum(of_part.values(), [])) == [f'{i:02}.png' for i in range(1, N)]
    assert bags.notes == [] and not bags.backgrounds.learned_groups().any()

def test_where_no_other_group_is_left_that_is_said(data):
    bags = read_bags(write_table(data, ['a']*7+['b']*5), use=True)
    assert any(note.startswith('groups of objects: all but one') for note in bags.notes)
    assert len(bags.indices()['valid']) and sum(map(len, bags.indices().values())) == N-1

def test_the_check_counts_masks(data, capsys):
    write_corrected(data, 'objects/00.png', of(255))
    write_corrected(data, 'backgrounds/00.png', of(0))
    save(data/'masks/05.png', of(255))
    bcd_check([str(data), '--out', str(data.parent/'page.html')])
    said = capsys.readouterr().out
    assert 'corrected: masks that bcd_train learns from: 1 of objects, 1 of backgrounds; they fit' in said
    assert 'masks: data.masks=use would learn from these masks: 1 of objects, 0 of backgrounds' in said
    save(data/'objects/00.png', gray(1, (9,9)))
    finding, = check_corrected(data, read_sets(data)[0])
    assert finding.level == 'problem' and finding.text.startswith('1 of 2 corrected masks cannot be learned from')

def test_the_key_of_an_hdf5_file(data, run, capsys):
    with h5py.File(data/'objects/h.h5', 'w') as h:
        h['a'], h['b'] = gray(1), gray(2)
    assert bcd_suggest([str(run), str(data), '-n', '3']) == 2
    assert 'or --key of other commands' in capsys.readouterr().err
    assert bcd_suggest([str(run), str(data), '-n', '3', '--key', 'b']) == 0
    (data/'look.txt').write_text('objects/h.h5\n')
    review, _ = open_review(run, data, data/'look.txt', key='b') # the folder of the run will do
    assert review.names == ['objects/h.h5'] and review.shape(0) == SHAPE
    review.ahead.close()

def test_notes_name_the_cause(data, run, capsys):
    (data/'objects/00.png').write_bytes(b'')
    assert bcd_suggest([str(run), str(data), '-n', str(2*N)]) == 2
    said = capsys.readouterr().err
    assert f'{2*N-1} of {2*N}: other pictures cannot be used, see below.' in said and sharing(data) == {}
