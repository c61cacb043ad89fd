"""Build the documentation into _docs/, without Quarto.

nbdev processes the notebooks into _proc/ (it adds the `show_doc` cells, hides what is marked hidden, makes the links
between pages), smalldocs renders _proc/ as a website. In between, and after, six small mends. Nothing is downloaded,
and no notebook is changed.
"""
import json, re, shutil, sys
from configparser import ConfigParser
from html import unescape
from pathlib import Path

import yaml
from latex2mathml.converter import convert
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.cli import main as smalldocs

from rooms import write_sidebar

cfg = get_config()

def process():
    "Run nbdev over the notebooks, as `nbdev-docs` does, and return the folder of processed ones."
    refresh_quarto_yml()
    _build_modidx()
    write_sidebar()
    return proc_nbs(n_workers=2, force=True)


def page_name(path):
    "The notebook `path` under its page's name: data/00_images.ipynb is data/images.html, for which nbdev makes links."
    return nbpath2html(path).with_suffix('.ipynb')


def rename_pages(proc):
    "Mend 1: give every notebook in `proc` its page's name."
    for old in sorted(proc.rglob('*.ipynb')):
        new = page_name(old)
        if new == old:
            continue
        if new.exists():
            sys.exit(f'build_docs: two notebooks would be the page {new.stem}.html, one is {old.name}')
        old.rename(new)


def local_links(text):
    "Mend 2: links to numbered notebooks become links to pages here."
    return re.sub(r'\]\(((?:[\w.]+/)*)\d+_([\w-]+)\.(ipynb|html)', r'](\1\2.\3', text)


def mend_notebook(path):
    "Apply `local_links` to the Markdown of notebook `path`; drop the page name from its front matter: it has it now."
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        if cell['cell_type'] == 'raw':
            cell['source'] = re.sub(r'^output-file:.*\n', '', ''.join(cell['source']), flags=re.M)
        if cell['cell_type'] == 'markdown':
            cell['source'] = local_links(''.join(cell['source']))
        for data in (o['data'] for o in cell.get('outputs', []) if 'text/markdown' in o.get('data', {})):
            data['text/markdown'] = local_links(''.join(data['text/markdown']))
    path.write_text(json.dumps(nb), encoding='utf-8')


def mend_sidebar(path):
    "Mend 3: the sidebar at `path` with the pages' names."
    bar = yaml.safe_load(path.read_text(encoding='utf-8'))
    side = bar['website']['sidebar']
    named = lambda page: page_name(Path(page)).as_posix()
    side['contents'] = [named(c) if isinstance(c, str) else c | {'contents': [named(p) for p in c['contents']]}
                        for c in side['contents']]
    path.write_text(yaml.safe_dump(bar, sort_keys=False), encoding='utf-8')


def mend_site(path):
    "Mend 6: what nbdev says of the site at `path`, without keys of Quarto alone, described as in settings.ini."
    site, settings = yaml.safe_load(path.read_text(encoding='utf-8')), ConfigParser(delimiters=['='])
    settings.read(cfg.config_path/'settings.ini', encoding='utf-8')
    del site['format-links'], site['website']['site-url']
    site['website']['description'] = settings['DEFAULT']['description']
    path.write_text(yaml.safe_dump(site, sort_keys=False), encoding='utf-8')


def converted(tex, display='inline'):
    "The formula `tex` as MathML; a command that latex2mathml does not know is an error."
    res = convert(tex, display=display)
    if unknown := re.search(r'\\[a-zA-Z]+', res):
        raise ValueError(f'{unknown[0]} in the formula {tex}')
    return res


def mathml(match):
    "The formula of a `<span class=\"math ...\">` as MathML."
    kind = match[1]
    res = converted(unescape(match[2]), 'block' if kind == 'display' else 'inline')
    bars = res.replace('<mo>&#x02016;</mo>', '<mo stretchy="false">&#x02016;</mo>')  # norms: bars of one height
    return f'<span class="math-{kind}">{bars}</span>'


def mend_maths(path):
    "Mend 4: formulas of page `path` as MathML, which browsers show without any script, in place of KaTeX from a CDN."
    html = path.read_text(encoding='utf-8')
    try:
        html = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', mathml, html, flags=re.S)
    except Exception as e:
        sys.exit(f'build_docs: {path.name}: {type(e).__name__}: {e}')
    html = re.sub(r'<link[^>]*katex[^>]*>|<script[^>]*katex[^>]*></script>', '', html)
    path.write_text(html, encoding='utf-8')


def mend_styles(site):
    "Mend 5: themes of `site` without the fonts that they load from elsewhere; the reader's own fonts take their place."
    for css in site.rglob('*.css'):
        text = css.read_text(encoding='utf-8')
        css.write_text(re.sub(r'@import\s+url\([^)]*\);?', '', text), encoding='utf-8')


def run_smalldocs(*args):
    "Run a smalldocs command and stop when it finds anything wrong."
    if smalldocs([*args]):
        sys.exit(f'build_docs: smalldocs {args[0]} found something wrong')


def main():
    "Notebooks to _proc/, mends, website to _docs/."
    proc = process()
    rename_pages(proc)
    for nb in proc.rglob('*.ipynb'):
        mend_notebook(nb)
    mend_sidebar(proc/'sidebar.yml')
    mend_site(proc/'nbdev.yml')
    run_smalldocs('check', str(proc))
    run_smalldocs('render', '--strict', '--quiet', str(proc))
    for page in (proc/cfg.doc_path.name).rglob('*.html'):
        mend_maths(page)
    mend_styles(proc/cfg.doc_path.name)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(proc/cfg.doc_path.name, cfg.doc_path)
    print(f'The documentation is in {cfg.doc_path.name}/: open {cfg.doc_path.name}/index.html')


if __name__ == '__main__':
    main()
