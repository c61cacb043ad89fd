"""The order in which notebooks are read, and the sentence in each that links to the one before and the one after.

    python scripts/reading_order.py            # writes the sentences anew
    python scripts/reading_order.py --check    # lists notebooks whose sentence is not right

The sidebar of the documentation has the same order: tutorials, then the data's way, then experiments and results.
"""
import json, re, sys
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent/'nbs'

# section -> beginnings of notebook names
SECTIONS = {'Tutorials': ('90', '93'), 'Images and data': '0', 'Backgrounds': '1', 'Masker and composites': '2', 'Divergences and losses': '3', 'Training': '4',
            'Scores and figures': '5', 'Prediction': '6', 'Experiments, commands': ('7', '8'), "The paper's experiments": ('91', '92'), 'Results and reference': ('94', '95', '96', '97', '98')}
SENTENCE = re.compile(r'Before: .*?\.(?=\s|$)')


def sections(names):
    "Section -> names of notebooks in it, in reading order; every numbered name is in one."
    found = {s: sorted(n for n in names if n.startswith(begin)) for s, begin in SECTIONS.items()}
    left = {n for n in names if n[0].isdigit()} - {n for ns in found.values() for n in ns}
    if left:
        raise ValueError(f'no section for {", ".join(sorted(left))}: add it to SECTIONS in {Path(__file__).name}')
    return found


def title(nb):
    "The heading of a notebook, without the word Tutorial."
    heading = next(l for c in nb['cells'] if c['cell_type'] == 'markdown' for l in ''.join(c['source']).splitlines() if l.startswith('# '))
    return re.sub(r'^Tutorial: (.)', lambda m: m[1].upper(), heading[2:].strip())


def sentence(before, after, titles):
    "What a notebook says of its neighbours."
    link = lambda n: f'[{titles.get(n, "Home")}]({n}.ipynb)'
    return f'Before: {link(before)}; next: {link(after)}.'


def with_sentence(nb, text):
    "Put the sentence where the old one is, or in a cell of its own below the title; whether anything changed."
    at = next((c for c in nb['cells'] if c['cell_type'] == 'markdown' and SENTENCE.search(''.join(c['source']))), None)
    if at is None:
        nb['cells'].insert(1, dict(cell_type='markdown', id='neighbours', metadata={}, source=[text]))
        return True
    old = ''.join(at['source'])
    new = SENTENCE.sub(lambda _: text, old, 1)
    at['source'] = new.splitlines(keepends=True)
    return new != old


def main():
    "Write or check the sentence of every notebook."
    names = [p.stem for p in NBS.glob('[0-9]*.ipynb')]
    order = ['index', *(n for ns in sections(names).values() for n in ns), 'index']
    nbs = {n: json.loads((NBS/f'{n}.ipynb').read_text(encoding='utf-8')) for n in names}
    titles = {n: title(nb) for n, nb in nbs.items()}
    changed = [n for b, n, a in zip(order, order[1:], order[2:]) if with_sentence(nbs[n], sentence(b, a, titles))]
    if '--check' in sys.argv[1:]:
        if changed:
            sys.exit(f'not in reading order: {", ".join(changed)}; run python scripts/reading_order.py')
        return
    for n in changed:
        (NBS/f'{n}.ipynb').write_text(json.dumps(nbs[n], indent=1, ensure_ascii=False, sort_keys=True)+'\n', encoding='utf-8')
    print(f'{len(changed)} notebooks changed')


if __name__ == '__main__':
    main()
