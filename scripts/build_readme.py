"""Write README.md from nbs/index.ipynb, without Quarto and without running a cell.

The notebook's saved outputs are shown; hidden cells, `#|` lines and front matter are not. Relative links and pictures
are made to point from the repository's top folder. The same notebook always gives the same file.
"""
import os, re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.config import nbpath2html

ROOT = Path(__file__).resolve().parent.parent
NBS, FILES = ROOT/'nbs', 'index_files'


def option(cell, name):
    "The value of the `#| name: value` line of `cell`, or None."
    found = re.search(rf'^#\|\s*{name}:\s*(\w+)', cell.source, re.M)
    return found and found[1]


def hidden(cell):
    "Whether the documentation leaves `cell` out."
    if cell.cell_type == 'raw':
        return True
    marks = re.search(r'^#\|\s*(hide|export|exporti|default_exp)\b(?!_)', cell.source, re.M)
    return cell.cell_type == 'code' and bool(marks or option(cell, 'include') == 'false')


def from_root(target):
    "The relative link `target` of the notebook as seen from ROOT; pages of the documentation become their notebooks."
    path, mark, anchor = target.partition('#')
    pages = {nbpath2html(nb.relative_to(NBS)).as_posix(): nb for nb in NBS.rglob('*.ipynb')}
    file = pages.get(path, NBS/path)
    return Path(os.path.relpath(file, ROOT)).as_posix() + mark + anchor if path and file.exists() else target


def mend_links(text):
    "Apply `from_root` to the links and pictures of Markdown `text`."
    return re.sub(r'(\]\(|(?:src|href)=")([^)"\s:]+)', lambda m: m[1] + from_root(m[2]), text)


def tidy(cell):
    "Take the `#|` lines out of a code cell, mend the links of a Markdown cell."
    if cell.cell_type == 'markdown':
        cell.source = mend_links(cell.source)
    elif option(cell, 'echo') == 'false':
        cell.source = ''
    else:
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip('\n')
    return cell


def render(nb):
    "The Markdown of notebook `nb` and the pictures among its outputs."
    nb.cells = [tidy(c) for c in nb.cells if not hidden(c)]
    nb.metadata.language_info = {'name': 'python'}
    body, resources = MarkdownExporter().from_notebook_node(nb, {'output_files_dir': FILES})
    body = re.sub(r'^```python\s*```\n', '', body, flags=re.M)
    body = '\n'.join(line.rstrip() for line in body.splitlines())
    return re.sub(r'\n{3,}', '\n\n', body).strip() + '\n', resources['outputs']


def main():
    "Write README.md, and index_files/ when a cell of the notebook draws a picture."
    body, pictures = render(nbformat.read(NBS/'index.ipynb', as_version=4))
    for name, data in pictures.items():
        (ROOT/name).parent.mkdir(exist_ok=True)
        (ROOT/name).write_bytes(data)
    head = '<!-- Written by scripts/build_readme.py from nbs/index.ipynb: edit that. -->\n\n'
    (ROOT/'README.md').write_text(head + body, encoding='utf-8')


if __name__ == '__main__':
    main()
