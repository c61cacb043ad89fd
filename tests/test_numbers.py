"""Numbers in prose, and tables that are saved in notebooks, are what the files of runs say."""
import json, re
from pathlib import Path

import nbformat, pytest
from nbclient import NotebookClient

from bcd_fast.experiments.results import results_table

NBS = Path(__file__).resolve().parent.parent/'nbs'
PAGES = sorted([*NBS.glob('9*.ipynb'), NBS/'index.ipynb'])

# A measured number in prose names its source: .938<!-- results/demo.json iou -->, and in a study also the case
SOURCE = re.compile(r'(\d*\.?\d+)\s?<!--\s*(\S+\.json)\s+(\S+)\s*(.*?)\s*-->')
SCORE = re.compile(r'\b(?:IoU|AP|NMI|AUROC|Dice)\b[^.;|\n]{0,40}?(?<![\w.])(?:\d?\.\d+)')


def prose(path):
    return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown']


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
        if float(number) != round(found_in(file, key, case), digits):
            bad.append(f'{number} is not {key} of {file} {case}: {found_in(file, key, case):.5g}')
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


@pytest.mark.parametrize('path', [p for p in PAGES if 'results_table(' in p.read_text(encoding='utf-8')], ids=lambda p: p.name)
def test_saved_tables(path):
    "What is saved below a call of `results_table` is the table of the file as it is now."
    cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if re.search(r"^results_table\('", ''.join(c['source']), re.M)]
    assert cells
    for c in cells:
        file = re.search(r"results_table\('(.*?)'\)", ''.join(c['source']))[1]
        saved = next(''.join(o['data']['text/html']) for o in c['outputs'] if 'text/html' in o.get('data', {}))
        assert re.sub(r'\s', '', saved) == re.sub(r'\s', '', results_table(NBS/file)._repr_html_()), file


@pytest.mark.parametrize('name', ['index', '95_benchmark', '96_studies'])
def test_saved_outputs(name):
    "Pages that are made of files alone, run again, show what they have saved."
    saved = nbformat.read(NBS/f'{name}.ipynb', as_version=4)
    again = NotebookClient(nbformat.from_dict(json.loads(json.dumps(saved))), timeout=120, resources={'metadata': {'path': NBS}}).execute()
    shown = lambda nb: [re.sub(r'T_\w{5}', 'T', ''.join(o.get('data', {}).get('text/html') or o.get('data', {}).get('text/markdown') or o.get('text', ''))) for c in nb.cells if c.cell_type == 'code' for o in c.outputs if o.get('name') != 'stderr']
    assert shown(again) == shown(saved)
