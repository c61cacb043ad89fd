"Masks go to labelling tools and come back; bad exports are refused in a sentence."
import json
import h5py, numpy as np, pytest, tifffile
from PIL import Image
from bcd_fast.commands.importing import bcd_import
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.exchange.coco import outline_mask, polygon_mask
from bcd_fast.data.corrected import corrected_of, earlier_of, pictures_of, read_corrected
from bcd_fast.data.maps import found_regions
from bcd_fast.exchange.label_studio import brush_mask, brush_prediction, encode_brush, write_label_studio
from bcd_fast.exchange.labelme import write_labelme
from bcd_fast.exchange.napari import write_napari
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from bcd_fast.prediction.outputs import coco_annotation, coco_file, geojson, numbered

SHAPE = 24, 36
SIXTEEN = 'objects/north/7.png', 'objects/9.tif' # pictures of 16 bits
NAMES = *SIXTEEN, 'objects/south/7.png', 'backgrounds/north/b 1+2.png'


def mask_of(i):
    "Two regions, one of them with a hole and at the border; the last picture has none."
    mask = np.zeros(SHAPE, bool)
    if i < len(NAMES)-1:
        mask[3+i:9+i, 4:11] = mask[18:, 30:] = True
        mask[5+i, 6:8] = False
    return mask


@pytest.fixture
def data(tmp_path):
    "A folder of pictures in sub-folders, two of them of 16 bits."
    for i, name in enumerate(NAMES):
        path = tmp_path/'data'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, SHAPE)
        values = (noise*200).astype(np.uint16) if name in SIXTEEN else noise.astype(np.uint8)
        Image.fromarray(values).save(path)
    return tmp_path/'data'


@pytest.fixture
def take(data, capsys):
    "A function that imports: exit status, standard output, standard error."
    def takes(export, *words):
        capsys.readouterr()
        status = bcd_import([str(export), str(data), *words])
        return status, *capsys.readouterr()
    return takes


def marked(data):
    "What the writers are given."
    return [(data/name, mask_of(i), np.where(mask_of(i), .875, .25), .5) for i, name in enumerate(NAMES)]


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def label_studio(data, out):
    "An export: predictions that were accepted as they are."
    write_label_studio(marked(data), out/'tasks', data)
    tasks = json.loads((out/'tasks/tasks.json').read_text())
    for i, t in enumerate(tasks):
        t |= dict(id=i, annotations=[dict(result=t['predictions'][0]['result'], was_cancelled=False)])
    return save(out/'export.json', tasks)


def labelme(data, out):
    "Files that labelme has saved."
    for path in write_labelme(marked(data), out, data):
        save(path, json.loads(path.read_text()) | dict(version='5.5.0'))
    return out


def napari(data, out):
    "Layers that napari has saved."
    for path in write_napari(marked(data), out, data):
        tifffile.imwrite(path, tifffile.imread(path))
    return out


def coco_content():
    "A file of COCO, with one picture without annotations."
    images, annotations = [], []
    for i, name in enumerate(NAMES):
        images.append(dict(id=i, file_name=name, height=SHAPE[0], width=SHAPE[1]))
        found = [coco_annotation(r, SHAPE) for r in found_regions([(0, mask_of(i), mask_of(i)*.5)])]
        annotations += numbered(found, i, len(annotations)+1)
    return json.loads(json.dumps(coco_file(images, annotations)))


def coco(data, out):
    return save(out/'annotations.json', coco_content())


def qgis(data, out):
    pytest.importorskip('rasterio')
    for i, name in enumerate(NAMES):
        save((out/name).with_suffix('.geojson'), geojson(mask_of(i), tolerance=0))
    return out


@pytest.mark.parametrize('tool', (label_studio, labelme, napari, coco, qgis))
def test_there_and_back(tool, data, take, tmp_path):
    before = {p: p.read_bytes() for p in pictures_of(data).values()}
    status, out, err = take(tool(data, tmp_path/'out'), '--empty')
    assert (status, err) == (0, '') and '4 mask(s)' in out and '1 of them of pictures where nothing is' in out
    assert list(corrected_of(data)) == sorted(NAMES)
    for i, name in enumerate(NAMES):
        path = data/'corrected'/name.replace('.tif', '.png')
        with Image.open(path) as im:
            assert (im.mode, im.format, im.size) == ('L', 'PNG', SHAPE[::-1])
        assert (read_corrected(path, SHAPE) == np.where(mask_of(i), 255, 0)).all()
    assert not earlier_of(data) and before == {p: p.read_bytes() for p in before}


def test_earlier_masks_are_kept(data, take, tmp_path):
    path = coco(data, tmp_path)
    take(path)
    content = coco_content()
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 1]
    for area in (1, 2):
        content['annotations'].append(dict(id=99, image_id=1, category_id=1, area=area,
                                           segmentation=[[0, 0, area, 0, area, 1, 0, 1]]))
        status, out, err = take(save(path, content))
        assert status == 0 and '1 earlier mask(s) kept' in out
    kept = [p.relative_to(data).as_posix() for p in earlier_of(data)]
    assert kept == ['corrected/earlier/objects/9.1.png', 'corrected/earlier/objects/9.2.png']
    assert (read_corrected(data/kept[0]) == np.where(mask_of(1), 255, 0)).all()
    assert (read_corrected(data/kept[1]) == 255).sum() == 1
    assert (read_corrected(data/'corrected/objects/9.png') == 255).sum() == 2


def tasks_of(*results, name='objects/9.tif', **more):
    "An export of Label Studio with an annotation of one picture."
    annotations = [dict(result=r) | more for r in results]
    return [dict(id=1, data=dict(image=f'/data/local-files/?d=site/{name}'), annotations=annotations)]


def brushed(mask=mask_of(0), label='object', **more):
    "The regions of a mask as Label Studio exports them."
    return [r | more for r in brush_prediction(mask, None, .5, label)['result']]


def short(regions):
    "Regions of which the last has lost its last bytes."
    value = regions[-1]['value']
    return regions[:-1]+[regions[-1] | dict(value=value | dict(rle=value['rle'][:-3]))]


def annotation(**more):
    "A file of COCO with one annotation."
    content = coco_content()
    return content | dict(annotations=[content['annotations'][0] | more])


def image(**more):
    "A file of COCO with one image."
    content = annotation(image_id=0)
    return content | dict(images=[content['images'][0] | more])


LABELME = dict(shapes=[dict(label='object', shape_type='rectangle', points=[[1, 2], [5, 6]])], imagePath='9.tif',
               imageHeight=SHAPE[0], imageWidth=SHAPE[1], version='5.5.0')

BAD = {
    'other pictures': (tasks_of(brushed(), name='elsewhere/9.tif'), 'elsewhere/9.tif is no picture of'),
    'other pictures, COCO': (image(file_name='elsewhere.png'), 'elsewhere.png is no picture of'),
    'other pictures, labelme': (LABELME | dict(imagePath='../x/9.tif'), 'x/9.tif is no picture of'),
    'other sizes': (tasks_of(brushed(mask_of(0).T)), 'was labelled with (36, 24) pixels'),
    'other sizes, COCO': (image(height=36, width=24), 'was labelled with (36, 24) pixels'),
    'other sizes, no word': (annotation(segmentation=dict(size=[3, 3], counts=[9])), 'of [3, 3] in one of 24'),
    'other sizes, labelme': (LABELME | dict(imageHeight=99), 'was labelled with (99, 36) pixels'),
    'unknown labels': (tasks_of(brushed(label='wreck')), 'has the labels wreck alone'),
    'unknown labels, labelme': (LABELME | dict(shapes=[LABELME['shapes'][0] | dict(label='wreck')]),
                                'has the labels wreck alone'),
    'other pictures, QGIS': (geojson(mask_of(0)), 'export.tif is no picture of'),
    'unknown labels, COCO': (annotation(category_id=7), 'has the labels category 7 alone'),
    'not looked at': (tasks_of(), 'nobody has labelled any of its 1 pictures'),
    'cancelled': (tasks_of(brushed(), was_cancelled=True), 'nobody has labelled any of its 1 pictures'),
    'no annotations': (coco_content() | dict(annotations=[]), 'add --empty'),
    'equal names, upload': ([dict(data=dict(image='/data/upload/3/1a2b3c4d-7.png'), annotations=[dict(result=[])])],
                            'may be objects/north/7.png or objects/south/7.png'),
    'equal names, COCO': (image(file_name='7.png'), 'may be objects/north/7.png or objects/south/7.png'),
    'equal names, twice': (tasks_of(brushed())*2, 'the export has it 2 times'),
    'no polygons': (dict(type='FeatureCollection', features=[]), 'add --empty'),
    'boxes': (annotation(segmentation=[]), 'has no outline'),
    'turned': (tasks_of(brushed(image_rotation=90)), 'turned by 90 degrees'),
    'short stream': (tasks_of(short(brushed())), 'ends early'),
    'points': (LABELME | dict(shapes=[LABELME['shapes'][0] | dict(shape_type='point')]), 'type point has no area'),
    'no tool': (dict(a=1), 'JSON of no tool'),
    'JSON-MIN': ([dict(image='a', annotation_id=1, annotator=2)], 'export as JSON')}


@pytest.mark.parametrize('name', BAD)
def test_bad_exports(name, data, take, tmp_path):
    content, said = BAD[name]
    status, out, err = take(save(tmp_path/'export.json', content))
    assert (status, out) == (2, '')
    assert err.startswith('error: ') and err.count('\n') == 1 and said in err, err
    assert not (data/'corrected').exists()


def seven(out):
    "A file of an export that is a file a picture."
    return next(p for p in sorted(out.rglob('*7*')) if p.suffix in ('.json', '.geojson', '.tif'))


@pytest.mark.parametrize('tool', (label_studio, coco, labelme, qgis, napari))
@pytest.mark.parametrize('share', (0, .3, .99))
def test_cut_files(tool, share, data, take, tmp_path):
    path = tool(data, tmp_path/'out')
    path = seven(path) if path.is_dir() else path
    path.write_bytes(path.read_bytes()[:int(share*path.stat().st_size)])
    status, out, err = take(path)
    assert (status, out) == (2, '') and err.count('\n') == 1
    whole = 'cannot be read as a TIFF' if tool is napari else 'is no whole JSON'
    assert ('neither JSON' if share == 0 else whole) in err


@pytest.mark.parametrize('tool', (labelme, qgis, napari))
def test_one_of_several_files_is_cut(tool, data, take, tmp_path):
    out = tool(data, tmp_path/'out')
    path = seven(out)
    path.write_bytes(path.read_bytes()[:60])
    status, said, err = take(out, '--empty')
    assert status == 2 and '3 mask(s)' in said and str(path) in err and len(corrected_of(data)) == 3


def test_bad_layers_of_labels(data, take, tmp_path):
    "napari has neither names of pictures in its files nor labels: what they lie beside and their size tell."
    for name, shape, said in (('elsewhere', SHAPE, 'elsewhere.tif is no picture of'),
                              ('9', SHAPE[::-1], 'was labelled with (36, 24) pixels'),
                              ('7', SHAPE, 'may be objects/north/7.png or objects/south/7.png')):
        path = tmp_path/f'{name}.labels.tif'
        tifffile.imwrite(path, np.eye(*shape, dtype=np.int32), photometric='minisblack')
        status, out, err = take(path)
        assert (status, out, err.count('\n')) == (2, '', 1) and said in err
        path.unlink()


def cvat():
    "A file of COCO as CVAT 2 exports it: attributes, polygons, run lengths of masks as lists of numbers."
    attributes = dict(occluded=False, rotation=0.0, track_id=0, keyframe=True)
    ring = [4.0, 3.0, 11.0, 3.0, 11.0, 9.0, 4.0, 9.0]
    runs = dict(size=list(SHAPE), counts=[30*24+18, 6, 18, 6, 18, 6, 18, 6, 18, 6, 18, 6])
    shapes = (dict(segmentation=[ring], area=42.0, bbox=[4.0, 3.0, 7.0, 6.0], iscrowd=0),
              dict(segmentation=runs, area=36.0, bbox=[30.0, 18.0, 6.0, 6.0], iscrowd=1))
    annotations = [dict(id=i, image_id=1, category_id=1, attributes=attributes) | s for i, s in enumerate(shapes, 1)]
    images = [dict(id=i, width=SHAPE[1], height=SHAPE[0], file_name=n, license=0, flickr_url='', coco_url='',
                   date_captured=0) for i, n in enumerate(NAMES, 1)]
    info = dict(contributor='', date_created='', description='', url='', version='', year='')
    categories = [dict(id=i, name=n, supercategory='') for i, n in enumerate(('object', 'unknown'), 1)]
    return dict(licenses=[dict(name='', id=0, url='')], info=info, categories=categories, images=images,
                annotations=annotations)


def test_cvat(data, take, tmp_path):
    "Polygons, and masks (which CVAT marks as crowds); pictures that nobody has labelled are left."
    status, out, err = take(save(tmp_path/'instances_default.json', cvat()))
    assert (status, err) == (0, '') and '1 mask(s)' in out and '3 picture(s) not looked at' in out
    wanted = np.zeros(SHAPE)
    wanted[3:9, 4:11] = wanted[18:, 30:] = 255
    assert (read_corrected(data/'corrected/objects/north/7.png', SHAPE) == wanted).all()


def test_cvat_unknown_pixels(data, take, tmp_path):
    content = cvat()
    content['annotations'][1]['category_id'] = 2
    assert take(save(tmp_path/'export.json', content))[0] == 0
    mask = read_corrected(data/'corrected/objects/north/7.png', SHAPE)
    assert (mask[18:, 30:] == 127).all() and (mask == 255).sum() == 42 and (mask > 0).sum() == 78
    content['annotations'][1]['segmentation']['counts'][0] += 1
    status, _, err = take(save(tmp_path/'export.json', content))
    assert status == 2 and 'annotation 2' in err and err.count('\n') == 1


def test_two_files_of_one_mask(data, take, tmp_path):
    (data/'objects/9.png').write_bytes((data/'objects/south/7.png').read_bytes())
    status, _, err = take(save(tmp_path/'export.json', tasks_of(brushed())))
    assert status == 2 and 'objects/9.png and objects/9.tif would have one and the same mask' in err


def test_newest_of_several(data, take, tmp_path):
    "The last that was not cancelled, whatever the order; its regions are united, other labels are unknown."
    task, = tasks_of(brushed(~mask_of(0)), brushed()+brushed(mask_of(3) | (np.arange(36) < 2), 'rock'), [])
    for a, (month, cancelled) in zip(task['annotations'], ((1, False), (3, False), (5, True))):
        a |= dict(updated_at=f'2026-0{month}-01T10:00:00Z', was_cancelled=cancelled)
    status, _, err = take(save(tmp_path/'export.json', [task]))
    assert status == 0 and 'the labels rock' in err
    mask = read_corrected(data/'corrected/objects/9.png', SHAPE)
    assert (mask[:, :2] == 127).all() and (mask[:, 2:] == np.where(mask_of(0), 255, 0)[:, 2:]).all()


def test_part_of_an_export(data, take, tmp_path):
    "What fits is taken, what does not is listed."
    tasks = tasks_of(brushed())+tasks_of(brushed(), name='objects/north/7.png')+tasks_of(brushed(), name='no.png')
    tasks[1]['annotations'][0]['result'][0]['original_width'] = 35
    status, out, err = take(save(tmp_path/'export.json', tasks+tasks_of(name='objects/south/7.png')))
    assert status == 2 and '1 mask(s) in' in out and '1 picture(s) not looked at' in out
    assert 'no.png is no picture' in err and '(24, 35) pixels' in err
    assert list(corrected_of(data)) == ['objects/9.tif']


def test_files_that_were_only_written(data, take, tmp_path):
    "What no tool has saved is nobody's word."
    for write in (write_labelme, write_napari):
        write(marked(data), tmp_path/write.__name__, data)
        status, _, err = take(tmp_path/write.__name__)
        assert status == 2 and 'nobody has labelled any of its 4 pictures' in err


def test_labels_beside_pictures(data, take):
    "labelme's usual place: a file beside its picture; equal names in other folders are not mistaken."
    save(data/'objects/south/7.json', LABELME | dict(imagePath='7.png'))
    status, out, err = take(data)
    assert (status, err) == (0, '') and list(corrected_of(data)) == ['objects/south/7.png']
    mask = read_corrected(data/'corrected/objects/south/7.png')
    assert (mask == 255).sum() == 25 and (mask[2:7, 1:6] == 255).all()


def test_previews_of_16_bits(data, tmp_path):
    write_label_studio(marked(data), tmp_path/'out', data)
    tasks = json.loads((tmp_path/'out/tasks.json').read_text())
    shown = [t['data']['image'] for t in tasks]
    assert ['/previews/' in s for s in shown] == [n in SIXTEEN for n in NAMES]
    assert shown[3].endswith('data/backgrounds/north/b%201%2B2.png')
    for i, name in enumerate(SIXTEEN):
        a = np.asarray(Image.open(tmp_path/'out/previews'/f'{name}.png')).astype(float)
        values = np.random.default_rng(i).integers(0, 256, SHAPE)
        assert a.shape == SHAPE and np.corrcoef(a.ravel(), values.ravel())[0, 1] > .99


def test_previews_show_the_data_set_that_was_predicted(data, tmp_path, capsys):
    "Of an HDF5 file with several, `--key` says which; masks that come back are taken with the same word."
    a, b = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    with h5py.File(data/'objects/h.h5', 'w') as h:
        h['a'], h['b'] = a, b
    model = save_model(tmp_path/'model', make_masker('small', 4, 1), 32, {})
    words = [str(model), str(data/'objects'), '--out', str(tmp_path/'out'), '--key', 'b']
    assert bcd_predict([*words, '--write', 'labelstudio', 'labelme']) == 0
    steps = capsys.readouterr().out.splitlines()[1:]
    assert len(steps) == 2 and all(line.endswith(f'{data} --key b') for line in steps)
    for name in ('labelstudio/previews', 'labelme'):
        assert (np.asarray(Image.open(tmp_path/'out'/name/'objects/h.h5.png')) == b).all()
    path = tmp_path/'out/labelme/objects/h.h5.json'
    save(path, json.loads(path.read_text()) | dict(version='6.0'))
    assert bcd_import([str(path), str(data), '--key', 'b']) == 0
    assert read_corrected(corrected_of(data)['objects/h.h5'], SHAPE).shape == SHAPE
    assert bcd_import([str(path), str(data)]) == 2 and 'h.h5' in capsys.readouterr().err


def test_turned_photographs(data, take, tmp_path):
    "A photograph with an EXIF rotation: tools show it otherwise than its pixels are stored."
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(data/'objects/t.jpg', exif=exif)
    status, _, err = take(save(tmp_path/'export.json', tasks_of(brushed(), name='objects/t.jpg')))
    assert status == 2 and 'has an EXIF entry that turns it' in err
    write_label_studio([(data/'objects/t.jpg', mask_of(0), None, .5)], tmp_path/'out', data)
    task, = json.loads((tmp_path/'out/tasks.json').read_text())
    assert task['data']['image'].endswith('/t.jpg.png')
    task['annotations'] = task['predictions']
    assert take(save(tmp_path/'export.json', [task]))[0] == 0


def in_metres(content):
    "Polygons in pixels as QGIS has them on the ground."
    shapes = [f['geometry'] for f in content['features']]
    rings = [[[[500000.5+.2*x, 5300000.25-.25*y] for x, y in ring] for ring in s['coordinates']] for s in shapes]
    placed = [dict(type='Feature', properties=None, geometry=s | dict(coordinates=r)) for s, r in zip(shapes, rings)]
    return dict(type='FeatureCollection', features=placed)


def test_geojson_on_the_ground(data, take, tmp_path):
    "QGIS, in the picture's own system and in degrees."
    rasterio = pytest.importorskip('rasterio')
    from rasterio.transform import from_origin
    from bcd_fast.prediction.outputs import map_coordinates
    place = dict(crs='EPSG:32633', transform=from_origin(500000.5, 5300000.25, .2, .25))
    path = data/'objects/site.tif'
    with rasterio.open(path, 'w', driver='GTiff', count=1, dtype='uint8', height=24, width=36, **place) as f:
        f.write(np.ones(SHAPE, np.uint8), 1)
    own = dict(crs=dict(type='name', properties=dict(name='urn:ogc:def:crs:EPSG::32633')))
    metres = in_metres(geojson(mask_of(0), tolerance=0))
    for i, content in enumerate((metres | own, geojson(mask_of(1), to_map=map_coordinates(path), tolerance=0))):
        assert take(save(tmp_path/'site.geojson', content))[0] == 0
        mask = read_corrected(data/'corrected/objects/site.png')
        assert (mask == np.where(mask_of(i), 255, 0)).all()
    status, _, err = take(save(tmp_path/'site.geojson', metres))
    assert status == 2 and err.count('\n') == 1


def test_packed_run_lengths():
    "COCO's own code."
    coco_mask = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 3), (90, 200)):
        mask = rng.random(shape) > rng.random()
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        rle['counts'] = rle['counts'].decode()
        assert (outline_mask(rle, shape) == mask).all()
    ring = [10.2, 4.1, 50.7, 9.3, 61, 40, 30.5, 55.5, 8, 33]
    theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([ring], 60, 70))) > 0
    assert (polygon_mask(ring, (60, 70)) ^ theirs).sum() < .03*theirs.sum()


def test_megapixel_of_brush():
    rows, columns = np.ogrid[:1024, :1024]
    disc = (rows-500)**2+(columns-400)**2 < 300**2
    rle = encode_brush(disc)
    assert len(rle) < 10000 and (brush_mask(rle, disc.shape) == disc).all()


@pytest.mark.parametrize('seed', range(3))
def test_odd_fields(seed, data, take, tmp_path):
    "Whatever stands in a field, there is a sentence and no traceback."
    rng = np.random.default_rng(seed)
    odd = None, -1, 1e300, float('nan'), '', 'x', [], {}, [[]], [None], 10**12, '..'
    ring = annotation(segmentation=[[1, 1, 4, 1, 4, 3]])
    for content in (tasks_of(brushed()), annotation(image_id=0), LABELME, ring):
        for _ in range(15):
            changed = json.loads(json.dumps(content))
            at = changed
            while isinstance(at, (dict, list)) and at:
                keys = list(at) if isinstance(at, dict) else range(min(len(at), 3))
                above, key = at, keys[rng.integers(len(keys))]
                at = above[key]
                if rng.random() < .3:
                    break
            above[key] = odd[rng.integers(len(odd))]
            status, out, err = take(save(tmp_path/'export.json', changed))
            assert status in (0, 2) and 'Traceback' not in err and (err or out)


@pytest.mark.parametrize('x', (float('nan'), float('inf'), 1e300))
def test_polygons_that_are_nowhere(x):
    from bcd_fast.exchange.coco import polygon_mask
    with pytest.raises(ValueError, match='no place'):
        polygon_mask([x, 1, 5, x, 5, 5], (8, 8))
