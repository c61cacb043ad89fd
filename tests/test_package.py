"""What holds for the project as a whole."""
import configparser, importlib, json, re, sys
from pathlib import Path
import pytest
from fastcore.docments import docments

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP/'scripts'))
from rooms import modules  # noqa: E402

NOTEBOOKS = sorted(p for p in (TOP/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def name_of(path):
    "data/00_images.ipynb"
    return path.relative_to(TOP/'nbs').as_posix()


@pytest.mark.parametrize('name', modules())
def test_module_imports_and_names_what_it_exports(name):
    module = importlib.import_module(f'bcd_fast.{name}')
    assert module.__doc__
    exported = [getattr(module, n) for n in module.__all__]
    for o in exported:
        if callable(o):
            docments(o, full=True)  # what the documentation page is made of


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebook(path):
    "Small, tested, without errors or paths of a machine in its outputs."
    nb = json.loads(path.read_text())
    title = ''.join(nb['cells'][0]['source'])
    one = 'the first cell holds the title and one > sentence: more would be missing in the documentation'
    assert re.fullmatch(r'# [^\n]+\n+> [^\n]+', title), one
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    sources = [''.join(c['source']) for c in code]
    assert path.stat().st_size < 1_000_000
    if any(s.startswith('#| export') for s in sources):
        assert any(re.search(r'\bassert\b|\btest_', s) for s in sources if not s.startswith('#| export'))
    for s in sources:
        assert not s.startswith('#| export') or len([l for l in s.splitlines() if l.strip()]) <= 41
    outputs = json.dumps([c['outputs'] for c in code])
    assert '"error"' not in outputs
    assert not re.search(r'(?<![\w.])/(home|root|tmp|Users|work)/\w', outputs)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_pictures_have_alternative_text(path):
    for c in json.loads(path.read_text())['cells']:
        if any('image/png' in o.get('data', {}) for o in c.get('outputs', [])):
            assert '#| fig-alt: "' in ''.join(c['source']), ''.join(c['source'])[:200]
        for alt in re.findall(r'!\[(.*?)\]\(', ''.join(c['source'])) if c['cell_type'] == 'markdown' else ():
            assert len(alt) > 10


LINK = re.compile(r'\]\(([^)#\s]+\.ipynb)(#[^)\s]*)?\)')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_links_lead_to_notebooks(path):
    for c in json.loads(path.read_text())['cells']:
        for target, _ in LINK.findall(''.join(c['source']) if c['cell_type'] == 'markdown' else ''):
            assert (path.parent/target).is_file(), target


def test_nothing_is_unpickled():
    for path in (TOP/'bcd_fast').rglob('*.py'):
        assert not re.search(r'\bpickle\b|torch\.load\(|load_learner|joblib', path.read_text()), path


def test_installed_commands_exist():
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(TOP/'settings.ini')
    for line in settings['DEFAULT']['console_scripts'].split():
        module, function = line.split('=')[1].split(':')
        assert callable(getattr(importlib.import_module(module), function))
