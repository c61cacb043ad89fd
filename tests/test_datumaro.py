"""Our COCO in Datumaro, and Datumaro's in `bcd_import`, mask by mask.

Slow, and only where Datumaro is: in this environment, or in that of the Python that BCD_DATUMARO names, since it wants
other versions of NumPy and pandas (CONTRIBUTING.md).
"""
import json, os, subprocess, sys
import numpy as np, pytest
from scipy import ndimage
from bcd_fast.commands.importing import bcd_import
from bcd_fast.data.corrected import read_corrected
from test_exchange import NAMES, SHAPE, coco_content, data, mask_of, save # noqa: F401

PYTHON = os.environ.get('BCD_DATUMARO', sys.executable)
THERE = subprocess.run([PYTHON, '-c', 'import importlib.util as u; exit(not u.find_spec("datumaro"))']).returncode == 0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not THERE, reason='no Python with datumaro')]
# what Datumaro reads, as JSON, and what it writes, with run lengths and with polygons
PROGRAM = """
import json, sys
import datumaro as dm
import numpy as np
top = sys.argv[1]
read = dm.Dataset.import_from(f'{top}/ours', 'coco_instances')
found = {}
for item in read:
    masks = [a for a in item.annotations if a.type==dm.AnnotationType.mask]
    names = read.categories()[dm.AnnotationType.label]
    found[item.id] = dict(
        masks=[np.asarray(a.image).astype(int).tolist() for a in masks], labels=[names[a.label].name for a in masks],
        areas=[float(a.get_area()) for a in masks], scores=[a.attributes['score'] for a in masks])
print(json.dumps(found))
for mode in ('mask', 'polygons'):
    read.export(f'{top}/{mode}', 'coco_instances', save_media=False, segmentation_mode=mode)
"""


@pytest.fixture(scope='module')
def there(tmp_path_factory):
    "What Datumaro reads of our file; the folder with what it writes."
    top = tmp_path_factory.mktemp('datumaro')
    (top/'ours/images/default').mkdir(parents=True) # it asks for that folder, and for no picture
    save(top/'ours/annotations/instances_default.json', coco_content())
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')} | dict(HOME=str(top))
    done = subprocess.run([PYTHON, '-c', PROGRAM, str(top)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), top


def test_ours_there(there):
    "Masks, areas, labels and scores."
    content, (found, _) = coco_content(), there
    assert sorted(found) == sorted(n.rsplit('.', 1)[0] for n in NAMES)
    for i, name in enumerate(NAMES):
        about, ours = found[name.rsplit('.', 1)[0]], [a for a in content['annotations'] if a['image_id'] == i]
        masks = [np.array(m) > 0 for m in about['masks']]
        assert len(masks) == len(ours) == (2 if mask_of(i).any() else 0)
        assert not masks or (np.logical_or.reduce(masks) == mask_of(i)).all()
        assert sorted(about['areas']) == sorted(a['area'] for a in ours) == sorted(int(m.sum()) for m in masks)
        assert about['labels'] == ['object']*len(ours) and about['scores'] == [.5]*len(ours)


@pytest.mark.parametrize('mode', ('mask', 'polygons'))
def test_theirs_here(mode, there, data, capsys): # noqa: F811
    "Run lengths are exact; its polygons run through the middles of pixels at the border, and lose holes."
    assert bcd_import([str(there[1]/mode/'annotations/instances_default.json'), str(data), '--empty']) == 0
    said = capsys.readouterr()
    assert '4 mask(s)' in said.out and not said.err
    for i, name in enumerate(NAMES):
        mask = read_corrected(data/'corrected'/name.replace('.tif', '.png'), SHAPE) > 0
        if mode == 'mask':
            assert (mask == mask_of(i)).all()
        else:
            full = ndimage.binary_fill_holes(mask_of(i))
            assert not (mask & ~full).any() and not (ndimage.binary_erosion(full) & ~mask).any()
