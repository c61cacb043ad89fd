"""The rooms of the project: their order, what each is for, and the imports between them.

    python scripts/rooms.py            # prints rooms, modules and arrows
    python scripts/rooms.py --check    # names every import that goes against the order
    python scripts/rooms.py --sidebar  # writes the order of the site, nbs/sidebar.yml

A module imports only from rooms earlier in `ROOMS`, and inside a room only from notebooks with smaller numbers.
"""
import ast, re, sys
from pathlib import Path

import yaml

TOP = Path(__file__).resolve().parent.parent
NBS, PACKAGE = TOP/'nbs', TOP/'bcd_fast'

# in the order of the data; a name without a folder is a single notebook
ROOMS = ('environment', 'core', 'settings', 'raw', 'data', 'backgrounds', 'divergences', 'masker', 'drawing',
         'training', 'scoring', 'prediction', 'exchange', 'review', 'experiments', 'segmenter', 'train', 'commands')

# the site: heading -> notebooks without a folder, or the room of that name
SIDEBAR = {'Tutorials': 'tutorials', 'Foundations': ('core', 'settings', 'environment'),
           'Raw sonar': 'raw', 'Data': 'data',
           'Backgrounds': 'backgrounds', 'Divergences': 'divergences', 'Masker': 'masker', 'Drawing': 'drawing',
           'Training': 'training', 'Scoring': 'scoring', 'Prediction': 'prediction', 'Exchange': 'exchange',
           'Review': 'review', 'Experiments': 'experiments',
           'Front doors': ('segmenter', 'train'), 'Commands': 'commands', "The paper's experiments": 'paper',
           'Studies': 'studies'}


def notebooks(room):
    "The notebooks of a room in their order."
    return sorted((NBS/room).glob('[0-9]*.ipynb')) if (NBS/room).is_dir() else [NBS/f'{room}.ipynb']


def about(room):
    "What a room is for: the docstring of its package, or of its module."
    init = PACKAGE/room/'__init__.py'
    source = init if init.is_file() else PACKAGE/f'{room}.py'
    return ast.get_docstring(ast.parse(source.read_text(encoding='utf-8')))


def module_of(notebook):
    "data/00_images.ipynb -> data.images"
    parts = notebook.relative_to(NBS).with_suffix('').parts
    return '.'.join([*parts[:-1], re.sub(r'^\d+_', '', parts[-1])])


def modules():
    "All modules in their order."
    return [module_of(nb) for room in ROOMS for nb in notebooks(room)]


def room_of(module):
    "data.images -> data"
    return module.split('.')[0]


def path_of(module):
    "data.images -> bcd_fast/data/images.py"
    return PACKAGE.joinpath(*module.split('.')).with_suffix('.py')


def imports(source, module):
    "The modules of the package that a module's source imports, as dotted names below the package."
    found, here = [], module.split('.')
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = here[:len(here)-node.level]
        elif (node.module or '').split('.')[0] == PACKAGE.name:
            base = []
        else:
            continue
        named = (node.module or '').split('.') if node.module else []
        target = '.'.join(base+[p for p in named if p != PACKAGE.name])
        found += [target] if target else [a.name for a in node.names]
    return found


def arrows():
    "Module -> the modules that it imports."
    known = modules()
    return {m: [i for i in imports(path_of(m).read_text(encoding='utf-8'), m) if i in known] for m in known}


def room_arrows():
    "Pairs of rooms, the first of which imports from the second."
    pairs = {(room_of(m), room_of(i)) for m, found in arrows().items() for i in found}
    return sorted((a, b) for a, b in pairs if a != b)


def against_order(found):
    "Sentences about imports of `arrows` that go to a later module or room."
    place = {m: i for i, m in enumerate(found)}
    pairs = [(m, i) for m, names in found.items() for i in names]
    return [f'{m} imports {i}, which comes after it' for m, i in pairs if place[i] >= place[m]]


def sidebar():
    "The contents of the site's sidebar: pages as paths below nbs/, sections in reading order."
    contents = ['index.ipynb', 'architecture.ipynb']
    for heading, what in SIDEBAR.items():
        pages = notebooks(what) if isinstance(what, str) else [NBS/f'{name}.ipynb' for name in what]
        contents.append({'section': heading, 'contents': [p.relative_to(NBS).as_posix() for p in pages]})
    return {'website': {'sidebar': {'contents': contents}}}


def sidebar_text():
    "The file nbs/sidebar.yml."
    head = '# Written by scripts/rooms.py --sidebar from the folders.\n'
    return head+yaml.safe_dump(sidebar(), sort_keys=False, allow_unicode=True)


def write_sidebar():
    "Write nbs/sidebar.yml, which both ways of building the site read."
    (NBS/'sidebar.yml').write_text(sidebar_text(), encoding='utf-8')


def main():
    "Print the rooms, check them, or write the sidebar."
    if '--sidebar' in sys.argv[1:]:
        return write_sidebar()
    found = arrows()
    if '--check' in sys.argv[1:]:
        sys.exit('\n'.join(against_order(found)) or None)
    for room in ROOMS:
        print(f'{room:12} {len(notebooks(room)):3}  {about(room)}')
    print(f'{len(found)} modules, {sum(map(len, found.values()))} imports, {len(room_arrows())} arrows between rooms')


if __name__ == '__main__':
    main()
