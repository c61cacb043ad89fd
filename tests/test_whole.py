"Whole pictures from files to masks: training, resuming, scoring again, from the command line and from Python."
import json
import numpy as np
import pytest
import torch
from collections import Counter
from dataclasses import asdict
from bcd_fast import Segmenter
from bcd_fast.core import InputError
from bcd_fast.data import bags
from bcd_fast.experiments.catalogue import compose_config
from bcd_fast.experiments import runs
from bcd_fast.experiments.runs import evaluate_run, resume_run, run_experiment
from bcd_fast.masker.maskers import make_masker, set_precision
from bcd_fast.masker.refinement import Finish, refine
from bcd_fast.prediction.models import Threshold, load_model, save_model, write_about
from bcd_fast.training import whole_pictures
from PIL import Image

TINY = ['trainer.epochs=2','trainer.steps=4','trainer.bs=4','trainer.paste=4','model.width=4','bar=false']

pytestmark = pytest.mark.usefixtures('drawn_quickly') # but in processes of their own

def disc_picture(rng, with_disc, size): # -> (h,w) uint8, (h,w) bool
    rows, columns = np.mgrid[:size[0], :size[1]]
    disc = (rows-rng.integers(10, size[0]-10))**2+(columns-rng.integers(10, size[1]-10))**2<36
    grays = 90+20*rng.standard_normal(size)+(90*disc if with_disc else 0)
    return grays.clip(0, 255).astype(np.uint8), disc

def write_set(folder, n=16, masks=True):
    rng = np.random.default_rng(0)
    for what in ('objects','backgrounds', *(['masks'] if masks else [])):
        (folder/what).mkdir(parents=True)
    for i in range(n):
        size = (48, 48+8*(i%3))
        shown, disc = disc_picture(rng, True, size)
        Image.fromarray(shown).save(folder/f'objects/{i:02}.png')
        Image.fromarray(disc_picture(rng, False, size)[0]).save(folder/f'backgrounds/{i:02}.png')
        if masks:
            Image.fromarray(disc.astype(np.uint8)*255).save(folder/f'masks/{i:02}.png')
    return folder

def settings(folder, *words):
    return compose_config(['experiment=folder','recipe=whole',f'data.path={folder}',*TINY,*words])

def silent(text):
    "Nobody listens."

def test_run_is_scored_on_whole_pictures(tmp_path):
    data = write_set(tmp_path/'data')
    metrics, left_out = run_experiment(settings(data), 'folder', tmp_path/'run', silent)
    assert not left_out
    assert 0<=metrics['ap']<=1 and 0<=metrics['background_masked']<=1
    for name in ('report.html','masks.png','losses.png','thresholds.png','model/model.json','model/README.md'):
        assert (tmp_path/'run'/name).is_file()
    model, about = load_model(tmp_path/'run/model')
    assert about['refined'] and model.after is not None
    again = evaluate_run(tmp_path/'run')
    assert again['ap']==pytest.approx(metrics['ap'], abs=1e-4)

@pytest.mark.parametrize('room, times', [(bags.KEPT, 1), (0, 3), (10*48*56, 2)])
def test_files_are_read_once_where_there_is_room(tmp_path, monkeypatch, room, times):
    "A set is looked at, normalised and stored; what is kept changes nothing; in the last case it is a part."
    data, read = write_set(tmp_path/'data', masks=False), Counter()
    (data/'objects/99.png').write_bytes(b'no picture')
    whole, real = bags.read_bags(data).fingerprint(), bags.read_pictures
    monkeypatch.setattr(bags, 'KEPT', room)
    monkeypatch.setattr(bags, 'read_pictures', lambda path, *more: read.update([path]) or real(path, *more))
    assert bags.read_bags(data).fingerprint()==whole
    found = {n for p, n in read.items() if p.name!='99.png'}
    assert found==({1, 3} if times==2 else {times}) and len(read)==33

def test_same_seed_same_weights(tmp_path):
    data, shas = write_set(tmp_path/'data', masks=False), []
    for name in 'ab':
        run_experiment(settings(data), 'folder', tmp_path/name, silent)
        shas.append(json.loads((tmp_path/name/'model/model.json').read_text())['sha256'])
    assert shas[0]==shas[1]

def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from bcd_fast.training import checkpoints
    data = write_set(tmp_path/'data', masks=False)
    run_experiment(settings(data), 'folder', tmp_path/'whole', silent)
    write = checkpoints.write_state
    def stop_after_first(path, state):
        write(path, state)
        raise KeyboardInterrupt
    monkeypatch.setattr(checkpoints, 'write_state', stop_after_first)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings(data), 'folder', tmp_path/'stopped', silent)
    monkeypatch.undo()
    resume_run(tmp_path/'stopped', silent)
    shas = [json.loads((tmp_path/n/'model/model.json').read_text())['sha256'] for n in ('whole','stopped')]
    assert shas[0]==shas[1]

def test_the_expected_time_is_corrected_once(tmp_path, monkeypatch):
    "Where an epoch takes a hundred times as long; weights are what they are."
    data, shas, said = write_set(tmp_path/'data', masks=False), [], []
    for name, expected in (('a', 1e-4), ('b', 3600.)):
        monkeypatch.setattr(whole_pictures, 'seconds_an_epoch', lambda learn: expected)
        monkeypatch.setattr(whole_pictures, 'minutes_text', lambda seconds: f'{seconds:.3g} s')
        run_experiment(settings(data, 'trainer.epochs=3'), 'folder', tmp_path/name, said.append)
        shas.append(json.loads((tmp_path/name/'model/model.json').read_text())['sha256'])
    assert shas[0]==shas[1] and sum('training will take' in line for line in said)==4
    assert sum(line.startswith('an epoch takes') and line.endswith('more') for line in said)==2

def test_other_pictures_do_not_go_on(tmp_path):
    data = write_set(tmp_path/'data')
    run_experiment(settings(data), 'folder', tmp_path/'run', silent)
    Image.fromarray(np.zeros((48,48), np.uint8)).save(data/'objects/00.png')
    with pytest.raises(InputError, match='have changed'):
        evaluate_run(tmp_path/'run')

def test_a_run_that_found_nothing_says_so(tmp_path):
    rng, said = np.random.default_rng(0), []
    for what in ('objects','backgrounds'):
        (tmp_path/'data'/what).mkdir(parents=True)
    for i in range(24): # the same pictures in both piles cannot be told apart
        a = Image.fromarray(rng.integers(0, 255, (48,48), dtype=np.uint8))
        for what in ('objects','backgrounds'):
            a.save(tmp_path/f'data/{what}/{i:02}.png')
    metrics, _ = run_experiment(settings(tmp_path/'data'), 'folder', tmp_path/'run', said.append)
    assert metrics['held_out_auroc']==.5
    assert 'nothing was found' in said[-1]
    assert 'nothing found' in (tmp_path/'run/report.html').read_text()

def test_segmenter_takes_arrays_and_masks(tmp_path):
    rng = np.random.default_rng(0)
    shown = [disc_picture(rng, True, (48,64)) for _ in range(14)]
    objects, masks = (np.stack(v) for v in zip(*shown))
    backgrounds = np.stack([disc_picture(rng, False, (48,64))[0] for _ in range(14)])
    tiny = dict(trainer__epochs=1, trainer__steps=3, trainer__bs=4, trainer__paste=4, model__width=4, bar=False)
    seg = Segmenter.fit(objects, backgrounds, masks, tmp_path/'run', recipe='whole', **tiny)
    assert seg.predict(objects)[0].shape==(48,64)
    assert seg.metrics['ap'] is not None
    with pytest.raises(InputError, match='13 masks for 14'):
        Segmenter.fit(objects, backgrounds, masks[:13], tmp_path/'other', recipe='whole', **tiny)

def test_bound_needs_masks(tmp_path):
    data = write_set(tmp_path/'data', masks=False)
    with pytest.raises(InputError, match='true masks'):
        run_experiment(settings(data,'supervised=true'), 'folder', tmp_path/'run', silent)

def test_folders_are_whole_pictures_by_default(tmp_path, run):
    write_set(tmp_path/'data')
    command = ['bcd_train','data=folder','data.path=data',*TINY]
    status, out, err = run(*command, 'hydra.run.dir=whole')
    assert status==0 and out.startswith('16 pictures with the object') and 'the masker sees' in out, err
    assert json.loads((tmp_path/'whole/model/model.json').read_text())['masker']['name']=='even'

def test_a_setting_of_squares_brings_them_back(tmp_path, call):
    write_set(tmp_path/'data')
    command = ['bcd_train','data=folder','data.path=data','cluster.k=1',*TINY]
    status, out, err = call(*command, 'encoder.epochs=1', 'encoder.steps=4', 'hydra.run.dir=fast')
    assert status==0 and out.startswith('recipe=fast, pictures become squares of one size: cluster.k, encoder'), err
    assert json.loads((tmp_path/'fast/model/model.json').read_text())['masker']['name']=='fast'

def test_parts_must_be_as_sure_as_the_model_says(tmp_path):
    import torch
    data = write_set(tmp_path/'data')
    run_experiment(settings(data), 'folder', tmp_path/'run', silent)
    path = tmp_path/'run/model/model.json'
    about = json.loads(path.read_text())
    for sure in (0., 50.):
        write_about(path.parent, about|dict(sure=sure, level=0.))
        model, _ = load_model(path.parent)
        with torch.no_grad():
            model.head.bias += 10 # everything is masked, and no pixel reaches 50
            assert (model(torch.rand(2,1,48,48))>0).any()==(sure==0)

def test_models_without_the_newest_fields_answer_as_they_did(tmp_path):
    save_model(tmp_path, make_masker('even').eval(), 64, {}, Threshold(finish=Finish(True, True, 2., 3.)))
    path = tmp_path/'model.json'
    about = json.loads(path.read_text())
    model, _ = load_model(tmp_path)
    assert model.mirrored and model.after is not None
    write_about(tmp_path, {k: v for k, v in about.items() if k not in asdict(Finish())})
    model, _ = load_model(tmp_path)
    assert not model.mirrored and model.after is None

def test_masks_begin_at_the_level_of_the_model(tmp_path):
    masker = make_masker('even').eval()
    x = torch.rand(1, 1, 48, 48)
    with torch.no_grad():
        masker.head.bias += 5
        plain = masker(x)
        for level in (0., 1.5):
            save_model(tmp_path, masker, 64, {}, Threshold(finish=Finish(refined=True, level=level)))
            found = set_precision(load_model(tmp_path)[0], 'float32')(x)
            assert torch.allclose(found, refine(x, plain, level), atol=1e-3)

def test_a_resume_after_the_last_epoch_finishes_the_same_model(tmp_path, monkeypatch):
    data, cut = write_set(tmp_path/'data'), tmp_path/'cut'
    run_experiment(settings(data), 'folder', tmp_path/'whole', silent)
    def interrupted(*args):
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(runs, 'finish_for', interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(settings(data), 'folder', cut, silent)
    resume_run(cut, silent)
    sums = [json.loads((tmp_path/run/'model/model.json').read_text())['sha256'] for run in ('whole','cut')]
    assert sums[0]==sums[1]
