"What the studies' scripts decide: which cases are meant, which runs are compared, and by whom clusters are judged."
import json, sys
from pathlib import Path

import pytest
from bcd_fast.experiments.catalogue import compose_config
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'scripts'))
import make_judged as judged  # noqa: E402
import make_studies as studies  # noqa: E402


@pytest.mark.parametrize('text,labels', [
    ('pixels, 64, K=1', ['pixels, 64, K=1']),
    ('pixels, 400, K=1', ['pixels, 400, K=1']),  # and not K=10
    ('pixels, 64', ['pixels, 64, K=5', 'pixels, 64, K=1']),
    ('nothing', [])])
def test_a_whole_label_means_that_case_alone(text, labels):
    assert studies.labels_of('alone', text) == labels


@pytest.mark.parametrize('study', [n for n in studies.CASES if n not in studies.NEED_FILES])
def test_the_words_of_every_case_are_known(study):
    for case in studies.CASES[study].values():
        assert compose_config(studies.words_of(case, 3)).seed == 3


def test_every_prediction_belongs_to_a_study():
    assert set(studies.PREDICTIONS) <= set(studies.STUDIES)


def made(label, *words):
    return judged.Made('third', label, studies.words_of(words, 0), Path(label))


def test_runs_of_the_same_images_are_compared():
    one, other = made('a', 'cluster.k=1'), made('b', 'trainer.div_share=.3', 'data.normalise=auto')
    assert one.images() == other.images() == 'digits seed 0'
    assert made('c', 'data=dsprites', 'data.opacity=.5').images() == 'dsprites data.opacity=.5 seed 0'
    folders = [made('d', 'experiment=folder', f'data.path=sets/{name}').images() for name in ('sdvd', 'other')]
    assert folders == ['sdvd seed 0', 'other seed 0']
    assert judged.with_clusters([one]) is None and judged.with_clusters([one, other]) is other


def test_the_masker_without_the_divergence_judges(monkeypatch):
    monkeypatch.setattr(judged, 'why_unfit', lambda masker, _: f'asked {masker}')
    assert judged.unfit([made('all'), made('no divergence')], ['one', 'two'], None) == 'asked two'
    assert judged.unfit([made('all')], ['one'], None) == judged.NO_JUDGE


def test_a_lower_loss_with_a_higher_score_is_agreement():
    rows = [dict(loss=loss, iou=iou) for loss, iou in ((.1, .9), (.2, .8), (.9, .1))]
    assert judged.rank(rows) == 1
    assert judged.rank([dict(r, iou=1-r['iou']) for r in rows]) == -1
    assert judged.rank([dict(loss=1, iou=0)]*3) is None


SIZES = {str(s): [f'data.object_scale={s}'] for s in (1, .5)}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    "Writes a study of two cases in an empty folder, as for runs of these seeds, and reads what is there."
    monkeypatch.setattr(studies, 'TOP', tmp_path)
    monkeypatch.setitem(studies.CASES, 'object_size', SIZES)

    def again(labels, seeds, iou, more=(), add=True):
        rows = {label: [dict(seed=s, iou=iou) for s in seeds] for label in labels}
        studies.write('object_size', rows, more, add)
        cases = json.loads((tmp_path/'nbs/results/studies/object_size.json').read_text())['cases']
        return {label: [(r['seed'], r['iou']) for r in case['runs']] for label, case in cases.items()}
    return again


def test_rows_of_other_seeds_stay(stored):
    assert stored(SIZES, [1, 3], .1) == {'1': [(1, .1), (3, .1)], '0.5': [(1, .1), (3, .1)]}
    found = stored(['1'], [3, 0], .2)
    assert found == {'1': [(0, .2), (1, .1), (3, .2)], '0.5': [(1, .1), (3, .1)]}  # by seed, and sorted


def test_rows_of_another_command_go(stored):
    stored(SIZES, [0, 1], .1)
    found = stored(['1'], [2], .2, ['trainer.epochs=9'])
    assert found == {'1': [(2, .2)], '0.5': [(0, .1), (1, .1)]}


def test_all_cases_are_written_anew(stored):
    stored(SIZES, [0, 1], .1)
    assert stored(['0.5'], [2], .2, add=False) == {'0.5': [(2, .2)]}
