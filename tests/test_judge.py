"`bcd_check --model`: several clusters of grounds or one, by the masks of a masker, on the command line."
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image
from conftest import within
from bcd_fast.masker.maskers import make_masker
from bcd_fast.masker.refinement import Finish
from bcd_fast.prediction.models import FileNumbers, Threshold, save_model

SIDE = 32


def disc_at(rng):
    "(SIDE,SIDE) bool."
    (y, x), (row, column) = np.mgrid[:SIDE, :SIDE], rng.uniform(8, SIDE-8, 2)
    return (y-row)**2+(x-column)**2 < 36


def pictures(n, seed, discs, gains=(1,)):
    "(n,SIDE,SIDE) uint8: noise, perhaps bright discs on it, in any of these gains; and where the discs are."
    rng, out, true = np.random.default_rng(seed), [], []
    for _ in range(n):
        ground, disc = rng.uniform(60, 100, (SIDE, SIDE)), disc_at(rng)
        values = np.where(disc, 200+.3*ground, ground) if discs else ground
        out.append((values/rng.choice(gains)).astype(np.uint8))
        true.append(disc&discs)
    return np.stack(out), np.stack(true)


def write(top, objects, backgrounds):
    for what, some in dict(objects=objects, backgrounds=backgrounds).items():
        (top/what).mkdir(parents=True)
        for i, a in enumerate(some):
            Image.fromarray(a).save(top/what/f'{i:03}.png')


@pytest.fixture(scope='module')
def masker():
    "A small masker that was taught by true masks to find discs in both gains."
    torch.manual_seed(0)
    sets = [pictures(160, seed, discs, (1, 3)) for seed, discs in ((10, True), (11, False))]
    x, true = (torch.from_numpy(np.concatenate(of))[:, None].float() for of in zip(*sets))
    model = make_masker('small', 8, 1).train()
    steps = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        some = torch.randperm(len(x))[:32]
        steps.zero_grad()
        F.binary_cross_entropy_with_logits(model(x[some]/255), true[some]).backward()
        steps.step()
    return model.eval()


@pytest.fixture(scope='module')
def top(tmp_path_factory, masker):
    "Folders of pictures, `gain/` and `few/`, and models of windows and of whole pictures."
    top = tmp_path_factory.mktemp('judge')
    write(top/'gain', pictures(240, 0, True, (1, 3))[0], pictures(240, 1, False, (1, 3))[0])
    write(top/'few', pictures(30, 2, True)[0], pictures(45, 3, False)[0])
    save_model(top/'run/model', masker, SIDE, dict(k=1))
    save_model(top/'whole/model', masker, SIDE, dict(k=1, assign='none'), Threshold(finish=Finish(True, True)))
    save_model(top/'untrained', make_masker('small', 4, 1), SIDE, {})
    save_model(top/'colour', make_masker('small', 4, 3), SIDE, {})
    save_model(top/'nodata', masker, SIDE, {}, numbers=FileNumbers(nodata=0.))
    return top


def said_of(top, data, model, *words):
    "Exit status, and what was said of the condition."
    status, out, err = within(['bcd_check', data, '--size', SIDE, '--model', model, *words], top)
    assert not err, err
    said, = (line for line in out.splitlines() if ' condition: ' in line)
    return status, said


@pytest.mark.slow
@pytest.mark.parametrize('model', ['run', 'whole'])
def test_one_cluster_where_a_gain_is_shared(drawn_quickly, top, model):
    status, said = said_of(top, 'gain', model, '--out', f'{model}.html')
    assert status == 1 and said.startswith('warning')
    assert f'judged by the masks of {model}' in said and 'by empty (t=-' in said and 'set cluster.k=1' in said
    page = (top/f'{model}.html').read_text()
    for part in ('<th>empty</th>', '<th>another</th>', '<th>fails</th>', f't of six changes of the masks of {model}'):
        assert part in page


@pytest.mark.slow
def test_too_few_images(drawn_quickly, top):
    _, said = said_of(top, 'few', 'run/model')
    assert said.startswith('note') and 'too few images for run/model to judge' in said


@pytest.mark.slow
def test_a_masker_that_finds_nothing_is_not_asked(drawn_quickly, top):
    _, said = said_of(top, 'gain', 'untrained')
    assert said.startswith('note') and 'untrained cannot judge clusters' in said
    assert 't of six changes' not in (top/'bcd_check.html').read_text()


@pytest.mark.parametrize('model, said', [
    ('nowhere', 'nowhere is no model folder: expected model.json'),
    ('gain', 'gain is no model folder'),
    ('colour', 'colour was trained on pictures of 3 channel(s), and few is read with 1: add --channels 3'),
    ('nodata', 'without data have the value 0 for nodata: add --nodata 0')])
def test_what_cannot_judge_is_one_sentence(drawn_quickly, top, model, said):
    status, out, err = within(['bcd_check', 'few', '--model', model, '--out', 'refused.html'], top)
    assert status == 2 and len(err.strip().splitlines()) == 1 and said in err
    assert not out and not (top/'refused.html').exists()
