"Files as other programs write them: read whole and by rows they are what those programs say that they are."
import os, socket, struct, zlib
from contextlib import contextmanager
from unittest.mock import patch
import h5py, imagecodecs, numpy as np, pytest, tifffile
from PIL import Image, ImageOps
from bcd_fast.core import InputError
from bcd_fast.data.formats import Picture, read_pictures
from bcd_fast.prediction.tiles import open_images
from conftest import linux, posix
try:
    import resource
except ImportError: # Windows
    resource = None

rng = np.random.default_rng(0)
GRAY = rng.integers(0, 256, (50, 40), np.uint8)
DEEP = rng.integers(0, 65536, (50, 40), np.uint16)
COLOUR = rng.integers(0, 256, (50, 40, 3), np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(*np.mgrid[:96, :80], 30), -1).astype(np.uint8) # for codes that lose details


def same(p, q):
    "Whether two pictures are equal."
    assert p.values.dtype == q.values.dtype
    np.testing.assert_array_equal(p.values, q.values)
    np.testing.assert_array_equal(*(np.ones(q.values.shape[1:], bool) if v.valid is None else v.valid for v in (p, q)))


def by_rows(path, channels=None, nodata=None):
    "Pictures of a file that counts as large, seven rows at a time."
    out = []
    with patch('bcd_fast.prediction.tiles.SMALL', 16), open_images(path, channels, nodata) as sources:
        for s in sources:
            parts = [s.rows(a, min(a+7, s.shape[0])) for a in range(0, s.shape[0], 7)]
            valid = [np.ones(p.values.shape[1:], bool) if p.valid is None else p.valid for p in parts]
            out.append(Picture(np.concatenate([p.values for p in parts], 1), np.concatenate(valid), type(s).__name__))
    return out


def both(path, channels=None, nodata=None, rows=True):
    "The pictures of a TIFF; read by rows they are the same."
    pictures = read_pictures(path, channels, nodata)
    parts = by_rows(path, channels, nodata)
    assert len(parts) == len(pictures) and {p.name == 'TiffRows' for p in parts} == {rows}
    for p, q in zip(pictures, parts):
        same(p, q)
    return pictures


def one(path, *args, **kwargs):
    "The only picture of a TIFF."
    p, = both(path, *args, **kwargs)
    return p


def refused(path, why, **kwargs):
    "Reading a file ends in a sentence that names it, whichever way it is read."
    for read in (read_pictures,) if 'key' in kwargs else (read_pictures, by_rows):
        with pytest.raises(InputError) as e:
            read(path, **kwargs)
        assert why in str(e.value) and path.name in str(e.value) and '\n' not in str(e.value)


def gdal(path, bands, **options):
    "Write bands as GDAL does; `mask` is an internal mask, `block` the side of tiles."
    rasterio = pytest.importorskip('rasterio')
    mask, block, tags = options.pop('mask', None), options.pop('block', 16), options.pop('tags', {})
    about = dict(driver='GTiff', count=len(bands), height=bands.shape[1], width=bands.shape[2], dtype=bands.dtype,
                 tiled=True, blockxsize=block, blockysize=block)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'w', **about | options) as f:
        f.write(bands)
        if mask is not None:
            f.write_mask(mask)
    if tags:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as f:
            f.build_overviews([2, 4])


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('options', [dict(), dict(compress='deflate'), dict(compress='zstd', interleave='band')])
def test_mask_page(tmp_path, options):
    "GDAL's mask page says where the page before it has data; those of overviews are none."
    rasterio = pytest.importorskip('rasterio')
    path, mask = tmp_path/'a.tif', rng.random((50, 40)) < .7
    bands = np.stack([DEEP, DEEP[::-1], DEEP//2])
    gdal(path, bands, mask=mask, tags=True, **options)
    with tifffile.TiffFile(path) as f:
        assert sorted({int(p.subfiletype) for p in f.pages}) == [0, 1, 4, 5]
    p = one(path)
    with rasterio.open(path) as f:
        np.testing.assert_array_equal(f.read(), p.values)
        np.testing.assert_array_equal(f.dataset_mask() > 0, p.valid)


@pytest.mark.filterwarnings('ignore')
def test_cloud_optimised(tmp_path):
    "A COG of JPEG tiles with their tables apart, overviews and a mask."
    rasterio = pytest.importorskip('rasterio')
    from rasterio.shutil import copy
    path, mask = tmp_path/'a.tif', np.ones((1100, 900), bool)
    mask[:300, 200:] = False
    y, x = np.mgrid[:1100, :900]
    gdal(tmp_path/'b.tif', np.stack([y/5, x/4, (x+y)/9]).astype(np.uint8), mask=mask, photometric='RGB')
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        copy(tmp_path/'b.tif', path, driver='COG', compress='JPEG', blocksize=256)
    with tifffile.TiffFile(path) as f:
        assert f.pages[0].jpegtables and f.pages[0].photometric == 6 and len(f.pages) > 2
    p = one(path)
    with rasterio.open(path) as f:
        assert abs(f.read().astype(int)-p.values).max() <= 2
        np.testing.assert_array_equal(f.dataset_mask() > 0, p.valid)


def test_mask_of_another_size(tmp_path):
    with tifffile.TiffWriter(tmp_path/'a.tif') as f:
        f.write(GRAY)
        f.write(GRAY[:20] > 9, subfiletype=4)
    refused(tmp_path/'a.tif', 'a mask of (20, 40) pixels does not belong to a page of (50, 40)')


@pytest.mark.parametrize('count, photometric', [(4, 'RGB'), (2, 'MINISBLACK'), (4, 'MINISBLACK')])
@pytest.mark.parametrize('dtype', (np.uint8, np.uint16, np.float32))
def test_bands_are_no_opacity(tmp_path, count, photometric, dtype):
    "Near infrared or radar, mostly 0 or its largest: the file does not call it opacity."
    path, bands = tmp_path/'a.tif', np.stack([GRAY]*count).astype(dtype)
    bands[-1] = np.where(GRAY > 40, bands.max(), 0)
    gdal(path, bands, photometric=photometric, ALPHA='NO')
    for channels in (None, count):
        p = one(path, channels)
        np.testing.assert_array_equal(p.values, bands)
        assert p.valid is None or p.valid.all()
    for channels in (1, 3):
        refused(path, f'channels: {count} there, {channels} asked for', channels=channels)


@pytest.mark.parametrize('count', (2, 4))
def test_declared_opacity(tmp_path, count):
    path, bands = tmp_path/'a.tif', np.stack([GRAY]*count)
    bands[-1] = np.where(GRAY > 40, 255, 0)
    gdal(path, bands, photometric='RGB' if count > 2 else 'MINISBLACK', ALPHA='YES')
    for channels in (None, count-1):
        p = one(path, channels)
        np.testing.assert_array_equal(p.values, bands[:-1])
        np.testing.assert_array_equal(p.valid, GRAY > 40)
    np.testing.assert_array_equal(one(path, count).values, bands)


@pytest.mark.parametrize('dtype, said, lost', [
    ('u1', '-9999', None), ('u1', 'nan', None), ('u1', 'inf', None), ('u1', '1e40', None), ('u1', '240.5', None),
    ('u1', '256', None), ('u1', '241', 241), ('u1', '241.0', 241), ('u2', '-1', None), ('u2', '65536', None),
    ('i2', '-9999', -9999), ('i4', '-2147483648', -2**31), ('f4', '1e40', None), ('f4', '241', 241),
    ('f4', '-3.4028234663852886e+38', -3.4028234663852886e38), ('f4', '-3.40282e+38', None), ('f4', '.1', .1),
    ('f8', '.1', .1), ('f8', '-3.4028234663852886e+38', -3.4028234663852886e38), ('u1', 'nothing', None)])
def test_nodata(tmp_path, dtype, said, lost):
    "A value that the numbers cannot be stands for nothing; it does not wrap round to another."
    a = np.arange(2000).reshape(50, 40).astype(dtype)
    if lost is not None:
        a[3, 4] = lost
    tifffile.imwrite(tmp_path/'a.tif', a, extratags=[(42113, 's', 0, said, True)], tile=(16, 16))
    expected = np.ones(a.shape, bool) if lost is None else a != np.array(lost, a.dtype)
    p = one(tmp_path/'a.tif')
    np.testing.assert_array_equal(np.ones(a.shape, bool) if p.valid is None else p.valid, expected)
    if said == 'nothing':
        return
    tifffile.imwrite(tmp_path/'b.tif', a, tile=(16, 16))
    np.save(tmp_path/'b.npy', a)
    for q in (one(tmp_path/'b.tif', nodata=float(said)), *read_pictures(tmp_path/'b.npy', nodata=float(said))):
        same(p, q)


def test_nodata_is_a_stored_number(tmp_path):
    "Whole numbers that `float32` cannot tell apart are told apart, and white is turned afterwards."
    a = 2**24+np.arange(2000, dtype=np.int32).reshape(50, 40)
    np.save(tmp_path/'a.npy', a)
    p, = read_pictures(tmp_path/'a.npy', nodata=2**24+1)
    assert (~p.valid).sum() == 1 and not p.valid[0, 1]
    tifffile.imwrite(tmp_path/'a.tif', GRAY, photometric='miniswhite', extratags=[(42113, 's', 0, '9', True)])
    np.testing.assert_array_equal(one(tmp_path/'a.tif').valid, GRAY != 9)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('nodata, dtype', [(None, 'u2'), (7, 'u2'), (-9999, 'i2'), (np.nan, 'f4'), (241.5, 'f4'),
                                           (-3.4028234663852886e38, 'f4'), (-9, 'f8'), (0, 'c8')])
@pytest.mark.parametrize('side', (16, 64))
def test_sparse(tmp_path, nodata, dtype, side):
    "Tiles that were never written, perhaps the only one."
    rasterio = pytest.importorskip('rasterio')
    path = tmp_path/'a.tif'
    about = dict(driver='GTiff', height=50, width=40, count=1, dtype=np.dtype(dtype).name, tiled=True,
                 blockxsize=side, blockysize=side, SPARSE_OK=True, nodata=nodata)
    with rasterio.open(path, 'w', **about) as f:
        if side == 16:
            f.write((DEEP[:16, :16] >> 1).astype(dtype), 1, window=((0, 16), (0, 16)))
    with tifffile.TiffFile(path) as f:
        assert 0 in f.pages[0].databytecounts
    if side == 64 and nodata is not None:
        with pytest.raises(InputError, match='no pixel has data'):
            read_pictures(path)
        p, = by_rows(path)
    else:
        p = one(path)
    with rasterio.open(path) as f:
        stored, valid = f.read(1), f.dataset_mask() > 0
    np.testing.assert_array_equal(np.ones((50, 40), bool) if p.valid is None else p.valid, valid)
    np.testing.assert_array_equal(np.abs(stored)[valid] if dtype == 'c8' else stored[valid], p.values[0][valid])


def turned(path, array, orientation, extratags=(), **options):
    tifffile.imwrite(path, array, extratags=[(274, 'H', 1, orientation, True), *extratags], **options)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_upright_tiff(tmp_path, orientation):
    path = tmp_path/'a.tif'
    turned(path, COLOUR, orientation, photometric='rgb', tile=(16, 16), compression='zlib')
    p = one(path, rows=orientation < 5)
    with Image.open(path) as im:
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(im)).transpose(2, 0, 1), p.values)
    as_stored = [(33550, 'd', 3, (1., 1., 0.), True), (33922, 'd', 6, (0., 0., 0., 5., 6., 0.), True)]
    turned(path, COLOUR, orientation, photometric='rgb', tile=(16, 16), extratags=as_stored)
    np.testing.assert_array_equal(one(path).values, COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_upright_mask_page(tmp_path, orientation):
    "A mask page is turned with its page, whatever it says itself."
    with tifffile.TiffWriter(tmp_path/'a.tif') as f:
        f.write(GRAY, tile=(16, 16), extratags=[(274, 'H', 1, orientation, True)])
        f.write(GRAY > 99, subfiletype=4, photometric='minisblack', compression='zlib')
    p = one(tmp_path/'a.tif', rows=orientation < 5)
    np.testing.assert_array_equal(p.valid, p.values[0] > 99)


@pytest.mark.parametrize('orientation', (0, 9, 65535))
def test_no_orientation(tmp_path, orientation):
    turned(tmp_path/'a.tif', GRAY, orientation)
    np.testing.assert_array_equal(one(tmp_path/'a.tif').values[0], GRAY)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ('jpg', 'png', 'webp'))
def test_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[274] = orientation
    path, options = tmp_path/f'a.{suffix}', dict(lossless=True) if suffix == 'webp' else {}
    Image.fromarray(SMOOTH).save(path, exif=exif, **options)
    with Image.open(path) as im:
        expected = np.asarray(ImageOps.exif_transpose(im))
    p, = read_pictures(path)
    np.testing.assert_array_equal(expected.transpose(2, 0, 1), p.values)


def test_upright_with_opacity(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.dstack([GRAY, np.where(GRAY > 99, 255, 0).astype(np.uint8)])).save(tmp_path/'a.png', exif=exif)
    p, = read_pictures(tmp_path/'a.png')
    np.testing.assert_array_equal(p.valid, np.rot90(GRAY > 99, -1))


def test_deep_png_upright(tmp_path):
    "Colours of 16 bits, which Pillow does not decode, with the EXIF of another PNG."
    exif = Image.Exif()
    exif[274] = 8
    deep = np.dstack([DEEP, DEEP//2, DEEP//3])
    raw, chunk = imagecodecs.png_encode(deep), exif.tobytes()[6:]
    body = b'eXIf'+chunk
    piece = struct.pack('>I', len(chunk))+body+struct.pack('>I', zlib.crc32(body))
    (tmp_path/'a.png').write_bytes(raw[:33]+piece+raw[33:])
    p, = read_pictures(tmp_path/'a.png')
    np.testing.assert_array_equal(p.values, np.rot90(deep).transpose(2, 0, 1))


# What is stored becomes gray or colours.

def of_pillow(path):
    with Image.open(path) as im:
        a = np.asarray(im.convert('RGB' if im.mode in ('CMYK', 'LAB', 'YCbCr', 'P') else im.mode))
    return a.transpose(2, 0, 1) if a.ndim == 3 else a[None]


@pytest.mark.parametrize('options', [dict(), dict(compression='lzw', tile=(16, 16)), dict(compression='jpeg')])
def test_inks(tmp_path, options):
    "Four inks, as Pillow reads them; with 16 bits the same colours."
    path, inks = tmp_path/'a.tif', np.dstack([SMOOTH, SMOOTH[:, :, 1:2]])
    tifffile.imwrite(path, inks, photometric='separated', **options)
    p = one(path)
    assert len(p.values) == 3 and abs(p.values.astype(int)-of_pillow(path)).max() <= 1
    if 'jpeg' not in options.values():
        tifffile.imwrite(tmp_path/'b.tif', inks*np.uint16(257), photometric='separated', **options)
        deep = one(tmp_path/'b.tif').values
        assert deep.dtype == np.uint16 and abs(deep/257-p.values).max() <= 1


def test_other_inks_are_bands(tmp_path):
    tifffile.imwrite(tmp_path/'a.tif', np.dstack([COLOUR, GRAY]), photometric='separated',
                     extratags=[(332, 'H', 1, 2, True)])
    np.testing.assert_array_equal(one(tmp_path/'a.tif').values, np.stack([*COLOUR.transpose(2, 0, 1), GRAY]))


def test_lab(tmp_path):
    tifffile.imwrite(tmp_path/'a.tif', COLOUR, photometric='cielab')
    p = one(tmp_path/'a.tif')
    np.testing.assert_array_equal(p.values, of_pillow(tmp_path/'a.tif'))
    icc = COLOUR ^ np.array([0, 128, 128], np.uint8)
    tifffile.imwrite(tmp_path/'b.tif', icc, photometric='icclab')
    same(one(tmp_path/'b.tif'), p)
    for order in '<>':
        tifffile.imwrite(tmp_path/'c.tif', COLOUR.astype(np.uint16) << 8, photometric='cielab', byteorder=order)
        same(one(tmp_path/'c.tif'), p)
    from skimage.color import lab2rgb
    gray = np.dstack([GRAY, 0*GRAY, 0*GRAY])
    tifffile.imwrite(tmp_path/'d.tif', gray, photometric='cielab')
    expected = 255*lab2rgb(gray*[100/255, 1, 1]).transpose(2, 0, 1)
    assert abs(one(tmp_path/'d.tif').values-expected).max() <= 3


def test_luminance_and_chroma(tmp_path):
    with Image.fromarray(COLOUR) as im:
        chroma = np.asarray(im.convert('YCbCr'))
    tifffile.imwrite(tmp_path/'a.tif', chroma, photometric='ycbcr', subsampling=(1, 1), compression='zlib')
    expected = np.asarray(Image.frombytes('YCbCr', (40, 50), chroma.tobytes()).convert('RGB')).transpose(2, 0, 1)
    np.testing.assert_array_equal(one(tmp_path/'a.tif').values, expected)


@pytest.mark.parametrize('options', [dict(tile=(32, 32)), dict(rowsperstrip=16),
                                     dict(tile=(16, 16), subsampling=(2, 1))])
def test_jpeg_in_tiff(tmp_path, options):
    path = tmp_path/'a.tif'
    tifffile.imwrite(path, SMOOTH, photometric='rgb', compression='jpeg', **options)
    p = one(path)
    np.testing.assert_array_equal(p.values, tifffile.imread(path).transpose(2, 0, 1))
    assert abs(p.values.astype(int)-SMOOTH.transpose(2, 0, 1)).mean() < 4


def test_jpeg_with_shared_tables(tmp_path):
    "As libtiff writes it: the tables lie apart from the tiles."
    path = tmp_path/'a.tif'
    Image.fromarray(SMOOTH).save(path, compression='jpeg', quality=95)
    with tifffile.TiffFile(path) as f:
        assert f.pages[0].jpegtables
    assert abs(one(path).values.astype(int)-of_pillow(path)).max() <= 2


@pytest.mark.parametrize('bits', (1, 2, 4, 8, 10, 12, 16))
@pytest.mark.parametrize('options', [dict(), dict(rowsperstrip=8), dict(tile=(16, 16))])
def test_bits(tmp_path, bits, options):
    "White is the largest number that there are bits for; less than 8 bits are spread over 8, as in PNG."
    a = (DEEP >> 16-bits).astype(np.uint16 if bits > 8 else np.uint8)
    stored, expected = a.astype(bool) if bits == 1 else a, a if bits >= 8 else a*(255//(2**bits-1))
    for name, photometric, numbers in (('a', 'minisblack', expected),
                                       ('b', 'miniswhite', (2**bits-1 if bits > 8 else 255)-expected)):
        path = tmp_path/f'{name}.tif'
        tifffile.imwrite(path, stored, photometric=photometric, bitspersample=bits, **options)
        np.testing.assert_array_equal(one(path).values[0], numbers)
        if bits <= 8 and not options:
            np.testing.assert_array_equal(of_pillow(path)[0]*np.uint8(255 if bits == 1 else 1), numbers)


def test_fax(tmp_path):
    "A mask of single bits, as scanners write it."
    Image.fromarray(GRAY > 200).save(tmp_path/'a.tif', compression='group4')
    np.testing.assert_array_equal(one(tmp_path/'a.tif').values[0], 255*(GRAY > 200))


@pytest.mark.parametrize('dtype', (np.float32, np.int16))
def test_white_is_zero_of_other_numbers(tmp_path, dtype):
    "The order of the numbers is turned, by rows as in whole."
    a = (GRAY/255 if dtype == np.float32 else GRAY).astype(dtype)
    tifffile.imwrite(tmp_path/'a.tif', a, photometric='miniswhite', tile=(16, 16))
    v = one(tmp_path/'a.tif').values[0]
    np.testing.assert_array_equal(np.argsort(v, None, 'stable'), np.argsort(-a.astype(float), None, 'stable'))


@pytest.mark.parametrize('step', (257, 256, 1))
def test_palette(tmp_path, step):
    "The same colours from TIFF and from PNG, also where a program wrote those of TIFF in 8 bits."
    colours = rng.integers(0, 256, (256, 3), np.uint8)
    im = Image.fromarray(GRAY, 'P')
    im.putpalette(colours.tobytes())
    im.save(tmp_path/'a.png')
    tifffile.imwrite(tmp_path/'a.tif', GRAY, photometric='palette', colormap=colours.T*np.uint16(step), tile=(16, 16))
    p, = read_pictures(tmp_path/'a.png')
    same(one(tmp_path/'a.tif'), p)
    np.testing.assert_array_equal(p.values, colours[GRAY].transpose(2, 0, 1))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('bits', (1, 2, 4))
def test_palette_of_few_bits(tmp_path, bits):
    "Written by GDAL, read by Pillow."
    rasterio = pytest.importorskip('rasterio')
    path, codes = tmp_path/'a.tif', GRAY >> 8-bits
    colours = {i: (200-9*i, 30+5*i, 7*i, 255) for i in range(2**bits)}
    about = dict(driver='GTiff', height=50, width=40, count=1, dtype='uint8', nbits=bits, photometric='palette')
    with rasterio.open(path, 'w', **about) as f:
        f.write_colormap(1, colours)
        f.write(codes, 1)
    p = one(path)
    assert p.values.dtype == np.uint8
    np.testing.assert_array_equal(p.values, np.array([colours[c][:3] for c in codes.flat]).T.reshape(3, 50, 40))


@pytest.mark.parametrize('options', [dict(imagej=True), dict(imagej=True, truncate=True), dict(truncate=True), dict()])
@pytest.mark.parametrize('shape', [(6, 50, 40), (2, 3, 50, 40)])
def test_stacks(tmp_path, options, shape):
    "Six pictures, whether the file has a directory for each or one for all."
    stack = rng.integers(0, 65536, shape, np.uint16)
    tifffile.imwrite(tmp_path/'a.tif', stack, photometric='minisblack', **options)
    pictures = both(tmp_path/'a.tif')
    assert len(pictures) == 6 and [p.name for p in pictures] == [f'a.tif[{i}]' for i in range(6)]
    np.testing.assert_array_equal([p.values[0] for p in pictures], stack.reshape(6, 50, 40))
    if 'truncate' in options:
        raw = (tmp_path/'a.tif').read_bytes()
        (tmp_path/'a.tif').write_bytes(raw[:-100])
        refused(tmp_path/'a.tif', 'shorter than its pictures')


def test_pages_of_different_kinds(tmp_path):
    "Each page is decoded in its own way; the one that lies on its side is read whole."
    with tifffile.TiffWriter(tmp_path/'a.tif') as f:
        f.write(GRAY, compression='lzw')
        f.write(GRAY, photometric='palette', colormap=np.arange(768, dtype=np.uint16).reshape(3, 256)*85)
        f.write(COLOUR, photometric='rgb', tile=(16, 16), compression='zlib', predictor=True)
        f.write(SMOOTH, photometric='rgb', compression='jpeg')
        f.write(DEEP, photometric='miniswhite', extratags=[(274, 'H', 1, 6, True)])
        f.write(DEEP.astype(np.float32), rowsperstrip=3)
    parts = by_rows(tmp_path/'a.tif')
    assert [p.name for p in parts] == ['TiffRows']*4+['WholeImage', 'TiffRows']
    for p, q in zip(read_pictures(tmp_path/'a.tif'), parts):
        same(p, q)
    np.testing.assert_array_equal(parts[0].values[0], GRAY)
    np.testing.assert_array_equal(parts[1].values[1], (256+GRAY.astype(int))*85 >> 8)
    np.testing.assert_array_equal(parts[4].values[0], np.rot90(65535-DEEP, -1))


# Honest files are read, others do not fill the memory.

@contextmanager
def little_memory(megabytes=400):
    "No more than that above what is held by now."
    held = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held+megabytes*2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


CONSTANT = [dict(bitspersample=1, compression='zlib'), dict(bitspersample=1, compression='packbits'),
            dict(compression='zstd'), dict(dtype=np.float32, compression='zstd'), dict(compression='lzw'),
            dict(dtype=np.float64, compression='zlib', predictor=3), dict(dtype=np.uint16, compression='lzma'),
            dict(compression='zlib', tile=(512, 512))]


@pytest.mark.parametrize('options', CONSTANT)
@pytest.mark.parametrize('side', (512, 3000))
def test_constant_masks(tmp_path, options, side):
    "Files of next to no bytes are honest where they are small."
    options = dict(options)
    a = np.ones((side, side), options.pop('dtype', bool if 'bitspersample' in options else np.uint8))
    tifffile.imwrite(tmp_path/'a.tif', a, photometric='minisblack', **options)
    p, = read_pictures(tmp_path/'a.tif')
    assert p.values.shape == (1, side, side) and p.values.min() == (255 if a.dtype == bool else 1)


@pytest.mark.parametrize('suffix', ('png', 'gif', 'webp', 'bmp'))
def test_constant_pictures(tmp_path, suffix):
    im = Image.fromarray(np.ones((2000, 2000), bool))
    im.convert('RGB' if suffix == 'webp' else '1').save(tmp_path/f'a.{suffix}')
    p, = read_pictures(tmp_path/f'a.{suffix}')
    assert p.values.shape[1:] == (2000, 2000) and p.values.min() == 255


def test_large_scan(tmp_path):
    "More pixels than Pillow takes without a word."
    Image.new('1', (13500, 13500), 1).save(tmp_path/'a.png')
    p, = read_pictures(tmp_path/'a.png')
    assert p.values.shape == (1, 13500, 13500) and p.values[0, -1, -1] == 255


@linux
def test_many_pages(tmp_path):
    "150 pages that are small each: what they take together counts, before any is decoded."
    with tifffile.TiffWriter(tmp_path/'a.tif') as f:
        piece = zlib.compress(bytes(2**24))
        for _ in range(150):
            f.write(iter([piece]), shape=(4096, 4096), dtype=np.uint8, compression='zlib', rowsperstrip=4096)
    assert (tmp_path/'a.tif').stat().st_size < 4e6
    with little_memory(), pytest.raises(InputError, match='its pictures take 2,516,582,400 bytes, more than the'):
        read_pictures(tmp_path/'a.tif')


@linux
def test_one_large_piece(tmp_path):
    "A strip that takes more than is read whole is refused by rows, too, and in little memory."
    piece = zlib.compress(bytes(2**21))[:-20]
    tifffile.imwrite(tmp_path/'a.tif', iter([piece*640]), shape=(40000, 33600), dtype=np.uint8, compression='zlib',
                     rowsperstrip=40000)
    with little_memory():
        refused(tmp_path/'a.tif', '')
        with pytest.raises(InputError, match='its pictures take 1,344,000,000 bytes, more than the'):
            by_rows(tmp_path/'a.tif')


@linux
@pytest.mark.parametrize('name', ('a.npy', 'a.tif', 'a.h5'))
def test_holes(tmp_path, name):
    "A file of a GB that takes no room on the disk."
    path, shape = tmp_path/name, (2**13, 2**15)
    if name == 'a.npy':
        with open(path, 'wb') as f:
            np.lib.format.write_array_header_1_0(f, dict(descr='<f4', fortran_order=False, shape=shape))
            f.truncate(f.tell()+2**30)
    elif name == 'a.tif':
        tifffile.memmap(path, shape=shape, dtype=np.float32)
    else:
        with h5py.File(path, 'w') as f:
            f.create_dataset('a', shape, np.float32)[-1, -1] = 1
    if path.stat().st_blocks*512 > 2**24:
        pytest.skip('this file system has no holes')
    with little_memory(1200), pytest.raises(InputError, match=f'{name} cannot be .* 1,073,741,824 bytes'):
        read_pictures(path)


def test_large_array(tmp_path):
    "A file that is as large as it says is no bomb."
    a = rng.integers(0, 255, (70, 1000, 1000), np.uint8)
    np.save(tmp_path/'a.npy', a)
    assert len(read_pictures(tmp_path/'a.npy')) == 70


# HDF5

def written(path, **sets):
    with h5py.File(path, 'w') as f:
        for name, a in sets.items():
            f[name] = a
    return path


def virtual(path, *sources):
    "Write a virtual data set, a row of pictures for each source."
    layout = h5py.VirtualLayout((len(sources), 50, 40), np.uint8)
    for i, source in enumerate(sources):
        layout[i] = h5py.VirtualSource(str(source), 'a', (50, 40))
    with h5py.File(path, 'w') as f:
        f.create_virtual_dataset('v', layout, fillvalue=7)
    return path


def test_virtual_data_set(tmp_path):
    "Its sources lie in the folder of the file; by name, by path, or in the file itself."
    for i in range(5):
        written(tmp_path/f'{i}.h5', a=GRAY+np.uint8(i))
    path = virtual(tmp_path/'v.h5', '0.h5', *(tmp_path/f'{i}.h5' for i in range(1, 5)))
    pictures = read_pictures(path)
    np.testing.assert_array_equal([p.values[0] for p in pictures], [GRAY+np.uint8(i) for i in range(5)])
    with h5py.File(tmp_path/'w.h5', 'w') as f:
        f['a'] = GRAY
        layout = h5py.VirtualLayout((50, 40), np.uint8)
        layout[:] = h5py.VirtualSource(f['a'])
        f.create_virtual_dataset('v', layout)
    p, = read_pictures(tmp_path/'w.h5', key='v')
    np.testing.assert_array_equal(p.values[0], GRAY)


@posix
def test_virtual_data_set_of_other_folders(tmp_path):
    (tmp_path/'in').mkdir()
    outside = written(tmp_path/'a.h5', a=GRAY)
    (tmp_path/'in/link.h5').symlink_to(outside)
    os.mkfifo(tmp_path/'in/pipe.h5')
    for source in ('../a.h5', outside, 'missing.h5', 'link.h5', 'pipe.h5', '.', '../in/../a.h5'):
        refused(virtual(tmp_path/'in/v.h5', source), '', key='v')
    written(tmp_path/'in/a.h5', a=GRAY)
    assert read_pictures(virtual(tmp_path/'in/v.h5', '../in/a.h5'))
    virtual(tmp_path/'in/w.h5', '../a.h5')
    with h5py.File(tmp_path/'in/w.h5', 'r+') as f:
        f.move('v', 'a')
    refused(virtual(tmp_path/'in/v.h5', 'w.h5'), '')
    with h5py.File(tmp_path/'in/x.h5', 'w') as f:
        f['a'] = h5py.ExternalLink('../a.h5', 'a')
    refused(virtual(tmp_path/'in/v.h5', 'x.h5'), 'its numbers lie in another file (../a.h5)')


@posix
def test_external_storage(tmp_path):
    "No other file becomes pixels, and nothing waits for a pipe."
    (tmp_path/'secret').write_bytes(bytes(2000))
    os.mkfifo(tmp_path/'pipe')
    for other in ('secret', 'pipe', '/etc/passwd'):
        with h5py.File(tmp_path/'a.h5', 'w') as f:
            f.create_dataset('a', (50, 40), np.uint8, external=[(str(tmp_path/other), 0, 2000)])
        refused(tmp_path/'a.h5', 'its numbers lie in another file (')


def test_external_link(tmp_path):
    written(tmp_path/'b.h5', a=GRAY)
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f['in/a'] = h5py.ExternalLink('b.h5', 'a')
    for key in (None, 'in/a'):
        refused(tmp_path/'a.h5', 'its numbers lie in another file (b.h5)', key=key)
    with h5py.File(tmp_path/'a.h5', 'r+') as f:
        f['own'] = DEEP
    np.testing.assert_array_equal(read_pictures(tmp_path/'a.h5')[0].values[0], DEEP)


@pytest.mark.parametrize('name', ('_FillValue', 'missing_value'))
def test_fill_value(tmp_path, name):
    "As NetCDF writes it, a number or an array of one; another value that is asked for goes first."
    for value in (np.int16(-9), np.array([-9], np.int16)):
        with h5py.File(tmp_path/'a.h5', 'w') as f:
            f['a'] = np.where(GRAY > 9, GRAY.astype(np.int16), np.int16(-9))
            f['a'].attrs[name] = value
        p, = read_pictures(tmp_path/'a.h5')
        np.testing.assert_array_equal(p.valid, GRAY > 9)
        p, = read_pictures(tmp_path/'a.h5', nodata=200)
        np.testing.assert_array_equal(p.valid, GRAY != 200)


# Only pictures are opened.

@posix
@pytest.mark.parametrize('suffix', ('png', 'tif', 'jpg', 'npy', 'h5', 'webp', 'jp2'))
def test_pipes_and_sockets(tmp_path, suffix):
    os.mkfifo(tmp_path/f'a.{suffix}')
    refused(tmp_path/f'a.{suffix}', 'it is no regular file')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path/f'b.{suffix}'))
        refused(tmp_path/f'b.{suffix}', 'it is no regular file')
    (tmp_path/f'c.{suffix}').symlink_to('/dev/zero')
    refused(tmp_path/f'c.{suffix}', 'it is no regular file')
    (tmp_path/f'd.{suffix}').mkdir()
    refused(tmp_path/f'd.{suffix}', 'it is no regular file')


@pytest.mark.parametrize('kind', ('EPS', 'PDF', 'TIFF', 'ICO', 'TGA', 'PCX', 'SGI', 'DDS', 'JPEG2000'))
def test_other_formats_in_disguise(tmp_path, kind):
    "A file that is none of the formats is not handed to what else Pillow knows."
    Image.fromarray(COLOUR[:32, :32]).save(tmp_path/'a.png', kind)
    with patch('PIL.EpsImagePlugin.Ghostscript', side_effect=AssertionError):
        refused(tmp_path/'a.png', 'cannot identify image file')


@pytest.mark.parametrize('kind', ('PNG', 'JPEG', 'BMP', 'PPM', 'GIF', 'WEBP'))
def test_formats_under_another_suffix(tmp_path, kind):
    for suffix in ('png', 'jpg', 'bmp', 'pgm', 'webp', 'gif'):
        Image.fromarray(SMOOTH).save(tmp_path/f'a.{suffix}', kind)
        p, = read_pictures(tmp_path/f'a.{suffix}')
        np.testing.assert_array_equal(p.values, of_pillow(tmp_path/f'a.{suffix}'))


@pytest.mark.parametrize('suffix', ('gif', 'webp'))
def test_frames(tmp_path, suffix):
    "Each frame is a picture."
    frames = [np.full((50, 40, 3), v, np.uint8)*[1, 0, 1] for v in (10, 100, 200)]
    first, *others = [Image.fromarray(f.astype(np.uint8)) for f in frames]
    first.save(tmp_path/f'a.{suffix}', save_all=True, append_images=others, lossless=True)
    pictures = read_pictures(tmp_path/f'a.{suffix}')
    assert [p.name for p in pictures] == [f'a.{suffix}[{i}]' for i in range(3)]
    np.testing.assert_array_equal([p.values for p in pictures], np.stack(frames).transpose(0, 3, 1, 2))


def test_previews_are_no_pictures(tmp_path):
    "Cameras put smaller pictures behind the one that was taken."
    small = Image.fromarray(SMOOTH[::4, ::4])
    Image.fromarray(SMOOTH).save(tmp_path/'a.jpg', 'MPO', save_all=True, append_images=[small])
    with Image.open(tmp_path/'a.jpg') as im:
        assert im.n_frames == 2
    p, = read_pictures(tmp_path/'a.jpg')
    assert p.values.shape == (3, 96, 80)


def test_clear_colours(tmp_path):
    "GIF and PNG may call one colour clear."
    im = Image.fromarray(GRAY, 'P')
    im.putpalette(rng.integers(0, 256, (256, 3), np.uint8).tobytes())
    for suffix in ('gif', 'png'):
        im.save(tmp_path/f'a.{suffix}', transparency=77)
        p, = read_pictures(tmp_path/f'a.{suffix}')
        np.testing.assert_array_equal(p.valid, GRAY != 77)
    Image.fromarray(GRAY).save(tmp_path/'b.png', transparency=78)
    Image.fromarray(COLOUR).save(tmp_path/'c.png', transparency=tuple(map(int, COLOUR[3, 4])))
    Image.fromarray(DEEP).save(tmp_path/'d.png', transparency=int(DEEP[5, 6]))
    for name, clear in dict(b=GRAY == 78, c=(COLOUR == COLOUR[3, 4]).all(2), d=DEEP == DEEP[5, 6]).items():
        p, = read_pictures(tmp_path/f'{name}.png')
        np.testing.assert_array_equal(p.valid, ~clear)


@pytest.mark.parametrize('array', (GRAY, DEEP, COLOUR, np.dstack([DEEP]*3), np.dstack([COLOUR, GRAY])))
def test_jpeg2000(tmp_path, array):
    (tmp_path/'a.jp2').write_bytes(imagecodecs.jpeg2k_encode(array, reversible=True, level=0))
    p, = read_pictures(tmp_path/'a.jp2')
    np.testing.assert_array_equal(p.values, array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    assert p.values.dtype == array.dtype and p.valid is None


@linux
def test_frame_larger_than_its_picture(tmp_path):
    "A later frame of a GIF cannot make the picture larger than what was checked."
    first, *others = [Image.fromarray(GRAY[i:i+20, :20]) for i in (0, 10, 20)]
    first.save(tmp_path/'a.gif', save_all=True, append_images=others)
    raw = bytearray((tmp_path/'a.gif').read_bytes())
    places = [i for i in range(len(raw)) if raw[i] == 0x2c and raw[i+5:i+9] == struct.pack('<HH', 20, 20)]
    assert len(places) == 3
    raw[places[1]+5:places[1]+9] = struct.pack('<HH', 15000, 15000)
    (tmp_path/'a.gif').write_bytes(raw)
    with little_memory():
        refused(tmp_path/'a.gif', 'its frames are of different sizes')
