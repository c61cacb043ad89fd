"""What is written for labelme in labelme's own loader, and what its own writer saves in `bcd_import`.

Slow, and only where BCD_LABELME names a Python that has labelme; its windows are not needed (CONTRIBUTING.md).
"""
import json, os, subprocess
import numpy as np, pytest
from bcd_fast.commands.importing import bcd_import
from bcd_fast.data.corrected import read_corrected
from bcd_fast.exchange.labelme import write_labelme
from test_exchange import NAMES, SHAPE, data, marked, mask_of # noqa: F401

PYTHON = os.environ.get('BCD_LABELME', '')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason='BCD_LABELME names no Python with labelme')]
# opens each file, prints its shapes as masks, erases the corner of the first shape, saves
PROGRAM = """
import json, sys
from unittest.mock import MagicMock
for name in ('PyQt5', 'PyQt5.QtCore', 'PyQt5.QtGui', 'PyQt5.QtWidgets', 'onnxruntime'):
    sys.modules[name] = MagicMock()
import numpy as np
from labelme import utils
from labelme._label_file import LabelFile, write_label_file
found = {}
for path in sys.argv[1:]:
    f = LabelFile(path)
    h, w = utils.img_data_to_arr(f.image_data).shape[:2]
    whole, regions = utils.shapes_to_label((h, w), f.shapes, dict(object=1))
    kept = [{k: v for k, v in s.items() if k!='other_data'} for s in f.shapes]
    for s in kept:
        s['mask'][:2, :3] = False
        s['mask'] = utils.img_arr_to_b64(s['mask'].astype(np.uint8))
    write_label_file(path, shapes=kept, image_path=f.image_path, image_height=h, image_width=w, other_data=f.other_data)
    found[path] = dict(mask=whole.tolist(), shapes=[(s['label'], s['shape_type']) for s in kept])
print(json.dumps(found))
"""


def corner_erased(mask):
    "The first 2 rows and 3 columns of both regions of `mask_of`, as the program erases them."
    out = mask.copy()
    if mask.any():
        for place in (np.argwhere(mask[:18])[0], np.array([18, 30])):
            out[place[0]:place[0]+2, place[1]:place[1]+3] = False
    return out


def test_there_and_back(data, tmp_path, capsys): # noqa: F811
    paths = write_labelme(marked(data), tmp_path/'out', data)
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')} | dict(HOME=str(tmp_path))
    words = [PYTHON, '-W', 'ignore', '-c', PROGRAM, *map(str, paths)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for i, path in enumerate(paths):
        about = found[str(path)]
        assert (np.array(about['mask']) == mask_of(i)).all()
        assert about['shapes'] == [['object', 'mask']]*(2 if mask_of(i).any() else 0)
    assert bcd_import([str(tmp_path/'out'), str(data)]) == 0
    assert '4 mask(s)' in capsys.readouterr().out
    for i, name in enumerate(NAMES):
        mask = read_corrected(data/'corrected'/name.replace('.tif', '.png'), SHAPE)
        assert (mask == np.where(corner_erased(mask_of(i)), 255, 0)).all()
