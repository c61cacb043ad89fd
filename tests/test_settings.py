"A setting is declared in one place: from there it is checked, documented and handed over."
import re
from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from bcd_fast import train
from bcd_fast.core import InputError
from bcd_fast.experiments.catalogue import GROUPS, TEXTS, compose_config
from bcd_fast.experiments.configs import Config
from bcd_fast.settings import check, choices_of, given, group, help_lines, meaning, setting, taken, value_at, walk
from bcd_fast.training.losses import BCDLoss
from bcd_fast.training.stage2 import TrainerConfig


@dataclass
class NewTrainer(TrainerConfig):
    "`trainer`: with one more setting, added in this one place."
    sharpness: float = setting(2., least=1, below=9, unit='powers') # of the masks that the new loss compares


@dataclass
class NewConfig(Config):
    "All settings, with the new one."
    trainer: NewTrainer = group(NewTrainer)


class NewLoss(BCDLoss):
    "A loss that has a parameter of the new setting's name."
    def __init__(self, divergence=None, bg_weight=1., sharpness=1.):
        super().__init__(divergence, bg_weight)
        self.sharpness = sharpness


def settings(*words):
    return OmegaConf.merge(OmegaConf.structured(NewConfig), OmegaConf.from_dotlist(list(words)))


def test_checked():
    assert check(settings('trainer.sharpness=3'), NewConfig).trainer.sharpness == 3
    for value in ('.5', '9', 'nan'):
        with pytest.raises(InputError, match='trainer.sharpness=.* is not possible: it must be at least 1 and below 9'):
            check(settings(f'trainer.sharpness={value}'), NewConfig)


def test_documented():
    line, = [line for line in help_lines(NewConfig) if 'trainer.sharpness' in line]
    assert '=2.0' in line and 'float at least 1 and below 9, powers' in line
    assert line.endswith('of the masks that the new loss compares')
    assert meaning(NewTrainer, 'bs') == meaning(TrainerConfig, 'bs') != ''


def test_handed_over():
    loss = NewLoss(**taken(NewLoss, settings('trainer.sharpness=3', 'trainer.bg_weight=7').trainer))
    assert (loss.sharpness, loss.bg_weight) == (3, 7)
    assert 'sharpness' not in taken(BCDLoss, settings().trainer)


def test_every_setting_says_what_it_means():
    for key, f, kind in walk(Config):
        assert key in GROUPS or meaning(kind, f.name), key


def test_every_number_has_a_range():
    "Except where any number is right."
    free = {'data.kind', 'data.nodata', 'divergence.regularisation'}
    numbers = {key for key, f, _ in walk(Config) if re.search(r'\b(int|float)\b', str(f.type))}
    ranged = {key for key, f, _ in walk(Config) if set(f.metadata) & {'least', 'most', 'above', 'below', 'choices'}}
    assert numbers-ranged == free


def test_no_second_list():
    "The choices of a group are those of its field."
    for name in ('data', 'encoder', 'cluster', 'model', 'divergence', 'logger', 'debug', 'hparams_search'):
        assert tuple(GROUPS[name]) == choices_of(Config, f'{name}.name')


@pytest.mark.parametrize('words, said', [
    (['data=sas', 'data.normalise=local'], 'data.normalise means nothing to data=sas: leave it out.'),
    (['data=sas', 'data.kind=3'], 'data.kind means nothing to data=sas: leave it out, or use data=regions.'),
    (['data=sas', 'data.object_scale=.5'], 'data.object_scale means nothing to data=sas: leave it at 1.'),
    (['encoder=autoencoder', 'encoder.views=3'], 'encoder.views means nothing to encoder=autoencoder: leave it out.'),
    (['encoder=contrastive', 'encoder.patch=8'], 'encoder.patch means nothing to encoder=contrastive: leave it out.'),
    (['divergence=mmd', 'divergence.epsilon=.1'], 'divergence.epsilon means nothing to divergence=mmd: it knows')])
def test_what_means_nothing_is_refused(words, said):
    with pytest.raises(InputError) as e:
        compose_config(words)
    assert said in str(e.value)


def test_groups_hold_plain_values():
    assert given(OmegaConf.structured(Config).divergence) == {}


@pytest.mark.parametrize('key', sorted(TEXTS))
def test_texts_are_taken_as_they_are(key):
    for text in ("Survey (2024), [old] {a}=#1 & $HOME ${x} \\${y} 'b' \"c\"", ' x ', "'", '\\', 'a\nb'):
        cfg = compose_config(['data=folder', f'{key}={text}'])
        assert value_at(cfg, key) == text
        again = OmegaConf.create(OmegaConf.to_yaml(cfg)) # as a run that goes on reads it
        assert value_at(again, key) == text
    assert value_at(compose_config(['data=folder', f'{key}="x y"']), key) == 'x y' # in quotes already


@pytest.mark.parametrize('words, said', [
    (['--nope'], '--nope is no flag'),
    (['--seed=1'], '--seed=1 is no flag'),
    (['--cfg', 'nope'], 'invalid choice'),
    (['--resolve'], '--resolve is for --cfg'),
    (['-m', '--cfg', 'job'], 'leave --multirun out'),
    (['--package', 'nope', '--cfg', 'job'], '--package=nope does not exist'),
    (['-'], 'is not of the form'),
    (['out=file'], 'Not a directory'),
    (['hydra.run.dir=file'], 'File exists'),
    (['hydra.run.dir='], 'has no value'),
    (['hydra.run.dir=${nope}'], 'nope'),
    (['out=${x}'], 'may not hold'),
    (['-m', 'hydra.nope=1'], 'hydra.nope'),
    (['-m', 'seed=0,-1'], 'seed=-1 is not possible'),
    (['seed=99999999999'], 'at most 2147483647'),
    (['trainer.lr=inf'], 'a finite number')])
def test_one_sentence(call, tmp_path, words, said):
    "What Hydra would say in many lines, or only after a run."
    (tmp_path/'file').touch()
    status, out, err = call('bcd_train', *words)
    assert status == 2 and not out and said in err, err
    assert err.startswith('error: ') and err.count('\n') == 1, err


def test_flags(call):
    "Those that mean something still do."
    assert call('bcd_train', '--version')[1].startswith('bcd_fast ')
    for words, said in ((['--cfg', 'job', 'seed=7'], 'seed: 7'), (['-c=job', '-p', 'trainer'], 'epochs:'),
                        (['seed=1', '-h'], 'Settings:'), (['--hydra-help'], 'Hydra')):
        status, out, err = call('bcd_train', *words)
        assert status == 0 and said in out and not err, (words, err)


@pytest.mark.parametrize('name', ['Grün (2024)', 'x,y', '[old]', '{a}', 'a=', '~/x', "it's", '#', '$HOME', 'a b '])
def test_folders_of_hydra(call, tmp_path, monkeypatch, name):
    "They are taken as they are typed."
    went = []
    def run_experiment(cfg, experiment, folder, say):
        went.append(folder)
        raise InputError('enough')
    monkeypatch.setattr(train, 'run_experiment', run_experiment)
    for word in ('hydra.run.dir', 'out'):
        call('bcd_train', f'{word}={name}')
    assert went[0] == str(tmp_path/name) and went[1].startswith(str(tmp_path/name/'demo')), went
