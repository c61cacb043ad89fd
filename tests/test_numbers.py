"""Numbers in prose, and tables that are saved in notebooks, are what the files of runs say."""
import json, re
from pathlib import Path

import nbformat, pandas as pd, pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from bcd_fast.experiments.results import results_table

NBS = Path(__file__).resolve().parent.parent/'nbs'
ROOMS = 'tutorials', 'paper', 'studies'
PAGES = sorted([NBS/'index.ipynb', *(p for room in ROOMS for p in (NBS/room).glob('*.ipynb'))])

# A measured number in prose names its source: .938<!-- results/demo.json iou -->, and in a study also the case
SOURCE = re.compile(r'(\d*\.?\d+)\s?<!--\s*(\S+\.json)\s+(\S+)\s*(.*?)\s*-->')
SCORE = re.compile(r'\b(?:IoU|AP|NMI|AUROC|Dice)\b[^.;|\n]{0,40}?(?<![\w.])(?:\d?\.\d+)')


def prose(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']


def found_in(file, key, case):
    "Mean over the runs of a results file, or of a case of a study."
    v = json.loads((NBS/file).read_text(encoding='utf-8'))
    runs = v['cases'][case]['runs'] if case else v['runs']
    return sum(r[key] for r in runs)/len(runs)


def check(text):
    "Numbers of a text that are not what their source says, and scores without a source."
    bad = []
    for number, file, key, case in SOURCE.findall(text):
        digits = len(number.partition('.')[2])
        mean = found_in(file, key, case)
        if float(number) != round(mean, digits):
            bad.append(f'{number} is not {key} of {file} {case}: {mean:.5g}')
    return bad + [m[0] for m in SCORE.finditer(SOURCE.sub('', re.sub(r'`[^`\n]*`', '', text)))]


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.name)
def test_prose(path):
    for text in prose(path):
        assert not check(text)


def test_the_check_can_fail():
    mean = found_in('results/demo.json', 'iou', '')
    assert not check(f'An IoU of {mean:.3f}<!-- results/demo.json iou --> in the end.')
    assert check(f'An IoU of {mean+.002:.3f}<!-- results/demo.json iou --> in the end.')
    assert check('An IoU of .938 in the end.')


WITH_TABLES = [p for p in PAGES if 'results_table(' in p.read_text(encoding='utf-8')]


def width_in(cells):
    "Letters of a cell of the tables that a notebook shows; those of pandas where it does not say. fastai sets another."
    said = re.search(r"'display.max_colwidth', (\d+)", '\n'.join(''.join(c['source']) for c in cells))
    return int(said[1]) if said else 50


@pytest.mark.parametrize('path', WITH_TABLES, ids=lambda p: p.name)
def test_saved_tables(path):
    "What is saved below a call of `results_table` is the table of the file as it is now."
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    cells = [c for c in found if re.search(r"^results_table\('", ''.join(c['source']), re.M)]
    assert cells
    for c in cells:
        file = re.search(r"results_table\('(.*?)'\)", ''.join(c['source']))[1]
        saved = next(''.join(o['data']['text/html']) for o in c['outputs'] if 'text/html' in o.get('data', {}))
        with pd.option_context('display.max_colwidth', width_in(found)):
            now = results_table(path.parent/file)._repr_html_()
        assert re.sub(r'\s', '', saved) == re.sub(r'\s', '', now), file


def shown(nb):
    "What the code cells of a notebook show, without the names that tables get anew each time."
    outputs = [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs if o.get('name') != 'stderr']
    data = [(o.get('data', {}), o.get('text', '')) for o in outputs]
    return [re.sub(r'T_\w{5}', 'T', ''.join(d.get('text/html') or d.get('text/markdown') or text)) for d, text in data]


@pytest.fixture(scope='module')
def kernel():
    "A Jupyter kernel that has imported what the pages import: starting it takes longer than the pages."
    manager, _ = start_new_kernel(cwd=NBS)
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize('name', ['index', 'studies/01_benchmark', 'studies/00_studies'])
def test_saved_outputs(kernel, name):
    "Pages that are made of files alone, run again, show what they have saved."
    path = NBS/f'{name}.ipynb'
    saved = nbformat.read(path, as_version=4)
    fresh = nbformat.from_dict(json.loads(json.dumps(saved)))
    fresh.cells.insert(0, nbformat.v4.new_code_cell(f'%reset -f\nimport os\nos.chdir({str(path.parent)!r})'))
    again = NotebookClient(fresh, timeout=120, km=kernel).execute()
    del again.cells[0]
    assert shown(again) == shown(saved)
