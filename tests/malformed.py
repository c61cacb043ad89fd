"""Damage files of every format that is read, by a seeded generator, and read them.

    python malformed.py FOLDER SEED NUMBER   # prints one JSON line a file
"""
import gzip, io, json, logging, resource, signal, struct, sys, time, warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch
import h5py, imagecodecs, numpy as np, tifffile, torch
from PIL import Image
from bcd_fast.core import InputError
from bcd_fast.data.formats import read_pictures
from bcd_fast.data.folders import read_table
from bcd_fast.data.objects import read_idx
from bcd_fast.data.sprites import read_dsprites
from bcd_fast.data.sassed import read_patches
from bcd_fast.data.sidescan import read_pair
from bcd_fast.backgrounds.clusters import load_clusters, make_clusters, save_clusters
from bcd_fast.masker.maskers import make_masker
from bcd_fast.training.debugging import load_weights, save_weights
from bcd_fast.training.checkpoints import read_state, write_state
from bcd_fast.prediction.models import load_model, save_model
from bcd_fast.prediction.tiles import open_images
from bcd_fast.prediction.predict import Manifest
from bcd_fast.experiments.results import read_results

rng = np.random.default_rng(1)
GRAY, DEEP = rng.integers(0, 255, (48, 40), np.uint8), rng.integers(0, 65535, (48, 40), np.uint16)


SECONDS, MEGABYTES = 20, 2000 # of a file; of the process, above what it holds when it begins


@dataclass
class Kind:
    "A file of some format."
    name: str # suffix, or a path in the folder
    data: bytes
    readers: tuple # functions of a path

    def path(self, folder, number):
        "Where a file of this kind is written: under a number, unless its name is fixed."
        return folder/self.name if '/' in self.name else folder/f'{number}{self.name}'


def stream(path, key=None):
    "Read a picture in bands, as prediction does with large ones."
    with patch('bcd_fast.prediction.tiles.SMALL', 16), open_images(path, key=key) as sources:
        return [s.rows(a, min(a+8, s.shape[0])) for s in sources for a in range(0, min(s.shape[0], 800), 8)]


def encoded(image, kind, **options):
    "The bytes of a picture."
    with io.BytesIO() as f:
        Image.fromarray(image).save(f, kind, **options)
        return f.getvalue()


def written(write, name):
    "The bytes of what `write` puts into a file."
    path = Path(sys.argv[1])/name
    write(path)
    return path.read_bytes()


def hdf5(path, **sets):
    "Write arrays as compressed sets of a file."
    with h5py.File(path, 'w') as f:
        for k, v in sets.items():
            f.create_dataset(k, data=v, chunks=True, compression='gzip')


def npz(path):
    "As the file of dSprites, with few values of each factor."
    factors = [1.], [1., 2.], [.5, 1.], np.arange(2.), np.arange(2.), np.arange(2.)
    values = np.stack(np.meshgrid(*factors, indexing='ij'), -1).reshape(-1, 6)
    np.savez_compressed(path, imgs=rng.integers(0, 2, (len(values), 64, 64), np.uint8), latents_values=values)


def masker():
    return make_masker('small', 4, 1)


def sonar_patches(path):
    "As the file of SASSED."
    data = np.stack([np.tile(DEEP, (4, 4))]*2).astype(np.complex64)
    hdf5(path, data=data, segments=np.ones((2, 192, 160), int))


def clusters(path):
    points = rng.random((40, 4)).astype(np.float32)
    save_clusters(make_clusters('sinkhorn', 2, 2).fit(points), path)


def state(path):
    write_state(path, dict(a=torch.rand(9), b=[1, None, 'x']))


def results(path):
    path.write_text(json.dumps(dict(command='x', runs=[dict(seed=0)])))


def model(folder):
    torch.manual_seed(0)
    save_model(folder, masker(), 64, dict(k=2, assign='robust', backgrounds=[3, 4]))


def pillow_pictures():
    "Pictures as cameras and scanners write them."
    exif, deep = Image.Exif(), np.dstack([DEEP]*3)
    exif[274] = 6
    for image, kind in ((GRAY, 'PNG'), (DEEP, 'PNG'), (np.dstack([GRAY]*4), 'PNG'), (GRAY > 99, 'PNG'), (GRAY, 'JPEG'),
                        (np.dstack([GRAY]*3), 'JPEG'), (GRAY, 'BMP'), (GRAY, 'PPM'), (DEEP, 'PPM'), (GRAY, 'GIF'),
                        (np.dstack([GRAY]*3), 'WEBP'), (np.dstack([GRAY]*4), 'WEBP')):
        suffix = dict(JPEG='jpg', PPM='pgm').get(kind, kind.lower())
        yield f'.{suffix}', encoded(image, kind, **dict(exif=exif) if kind in ('JPEG', 'WEBP') else {})
    frames = dict(save_all=True, append_images=[Image.fromarray(GRAY[::-1]), Image.fromarray(GRAY//2)])
    yield '.gif', encoded(GRAY, 'GIF', **frames)
    yield '.webp', encoded(GRAY, 'WEBP', **frames)
    yield '.png', imagecodecs.png_encode(deep)
    yield '.jp2', imagecodecs.jpeg2k_encode(deep, level=0, reversible=True)


def with_mask(path):
    "As GDAL writes a picture with its mask and their overviews."
    with tifffile.TiffWriter(path) as f:
        for kind in (0, 1):
            f.write(GRAY[::1+kind, ::1+kind], subfiletype=kind, tile=(16, 16), compression='zlib')
            f.write(GRAY[::1+kind, ::1+kind] > 9, subfiletype=4+kind, photometric='minisblack', compression='zlib')


def tiffs():
    "Functions of a path that write TIFF of many kinds."
    packed = dict(), dict(compression='zlib', tile=(16, 16)), dict(compression='lzw', rowsperstrip=8)
    for options in packed:
        for image in (GRAY, DEEP, DEEP.astype(np.float32), np.stack([GRAY]*3)):
            yield partial(tifffile.imwrite, data=image, photometric='minisblack', **options)
    colour, side = np.dstack([GRAY]*3), [(274, 'H', 1, 6, True)]
    for image, photometric, options in (
            (colour, 'rgb', dict(compression='jpeg', tile=(16, 16))), (GRAY, 'minisblack', dict(compression='jpeg')),
            (colour, 'cielab', dict()), (np.dstack([GRAY]*4), 'separated', dict()), (GRAY > 99, 'miniswhite', dict()),
            (GRAY, 'palette', dict(colormap=np.arange(768, dtype=np.uint16).reshape(3, 256))),
            (DEEP >> 4, 'miniswhite', dict(bitspersample=12)), (colour, 'rgb', dict(compression='webp')),
            (DEEP.astype(np.float32), 'minisblack', dict(compression='zstd', predictor=3)),
            (colour, 'rgb', dict(compression='jpeg2000')), (DEEP, 'minisblack', dict(extratags=side, tile=(16, 16))),
            (np.dstack([GRAY]*4), 'rgb', dict(extrasamples=['unassalpha'], compression='packbits')),
            (np.stack([DEEP]*6), 'minisblack', dict(imagej=True, truncate=True)),
            (np.stack([DEEP]*6), 'minisblack', dict(bigtiff=True, byteorder='>', compression='lzma'))):
        yield partial(tifffile.imwrite, data=image, photometric=photometric, **options)
    yield with_mask


def hdf5s():
    "Functions of a path that write HDF5."
    yield partial(hdf5, images=np.stack([GRAY]*6))

    def plain(path):
        with h5py.File(path, 'w', libver='latest') as f:
            f['in/images'] = DEEP
            f['in/images'].attrs['_FillValue'] = 7

    def virtual(path):
        with h5py.File(path, 'w') as f:
            f['a'] = GRAY
            layout = h5py.VirtualLayout(GRAY.shape, np.uint8)
            layout[:] = h5py.VirtualSource(f['a'])
            f.create_virtual_dataset('v', layout)
    yield plain
    yield virtual


def pictures():
    "Pictures of all formats, read whole and in bands."
    both = read_pictures, stream
    for suffix, data in pillow_pictures():
        yield Kind(suffix, data, both)
    for k, write in enumerate(tiffs()):
        yield Kind('.tif', written(write, f't{k}.tif'), both)
    for array in (GRAY, np.stack([DEEP]*5), DEEP.astype(np.complex64)):
        yield Kind('.npy', written(partial(np.save, arr=array), 'a.npy'), both)
    for k, write in enumerate(hdf5s()):
        key = 'v' if k == 2 else None
        yield Kind('.h5', written(write, f'h{k}.h5'), (partial(read_pictures, key=key), partial(stream, key=key)))


def data_sets():
    "Files of public data sets, and tables."
    idx = struct.pack('>HBB3I', 0, 8, 3, 30, 28, 28)+rng.integers(0, 255, 30*784, np.uint8).tobytes()
    table = b'path,label\n'+b''.join(b'%d.png,%d\n' % (i, i % 2) for i in range(40))
    yield Kind('.h5', written(sonar_patches, 'b.h5'), (read_patches,))
    yield Kind('', idx, (read_idx,))
    yield Kind('.gz', gzip.compress(idx), (read_idx,))
    yield Kind('.npz', written(npz, 'd.npz'), (read_dsprites,))
    yield Kind('.png', encoded(GRAY, 'PNG'), (lambda p: read_pair(p, p),))
    yield Kind('.csv', table, (read_table,))


def own_files():
    "Files that the package itself has written; a model's two files are damaged one at a time."
    line = dict(path='/a.png', file='a.png', sha256='0'*64, stem='a', pages=1, outputs={'a.png': 7})
    manifest = b'%s\n\n%s\n' % tuple(json.dumps(v).encode() for v in (dict(version=2, settings={}, before=[]), line))
    weights = partial(save_weights, masker())
    yield Kind('.safetensors', written(state, 's'), (read_state,))
    yield Kind('.safetensors', written(clusters, 'c'), (load_clusters,))
    yield Kind('.safetensors', written(weights, 'w'), (lambda p: load_weights(masker(), p),))
    yield Kind('.json', written(results, 'r.json'), (read_results,))
    yield Kind('', manifest, (lambda p: Manifest(p, dict()),))
    folder = Path(sys.argv[1])/'model'
    model(folder)
    for name in ('model.json', 'model.safetensors'):
        yield Kind(f'model/{name}', (folder/name).read_bytes(), (lambda p: load_model(p.parent),))


def damage(data, rng):
    "One to three of the ways in which files get broken."
    a = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not a:
            break
        i, n = int(rng.integers(len(a))), int(rng.integers(1, 64))
        head = int(rng.integers(min(len(a), 256)))
        match rng.integers(7):
            case 0:
                del a[i:]
            case 1:
                a[i:i+n] = rng.bytes(n)
            case 2:
                a[i:i+n] = bytes(n)
            case 3:
                a[head:head+4] = b'\xff\xff\xff\x7f'
            case 4:
                a[i:i] = a[i:i+n]
            case 5:
                a[head] ^= 1 << int(rng.integers(8))
            case 6:
                del a[i:i+n]
    return bytes(a)


def attempt(read, path):
    "'read', or the sentence of the refusal, or what went wrong; seconds."
    start = time.perf_counter()
    signal.alarm(SECONDS) # ends the process
    try:
        read(path)
        said = 'read'
    except InputError as e:
        said = f'refused: {e}'
    except BaseException as e:
        said = f'{type(e).__name__}: {e}'
    signal.alarm(0)
    return said, time.perf_counter()-start


def peak():
    "Megabytes that this process has held at most."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def limit_memory():
    "No more than `MEGABYTES` from now on."
    held = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held+MEGABYTES*2**20,)*2)


def tell(**what):
    print(json.dumps(what), flush=True)


def read_whole(kinds, folder):
    "Read all files as they are: what is damaged must have been right."
    for k, kind in enumerate(kinds):
        path = kind.path(folder, f'whole{k}')
        path.write_bytes(kind.data)
        for read in kind.readers:
            tell(file=path.name, whole=True, said=attempt(read, path)[0])


def read_damaged(kinds, folder, number, generator):
    "Read files of all kinds in turn, damaged."
    before = peak()
    for i in range(number):
        kind = kinds[i % len(kinds)]
        path = kind.path(folder, i)
        path.write_bytes(damage(kind.data, generator))
        for read in kind.readers:
            print(path, file=sys.stderr, flush=True) # the last one, where it crashes or hangs
            said, seconds = attempt(read, path)
            tell(file=str(path), whole=False, said=said, seconds=seconds, megabytes=peak()-before)
        if '/' in kind.name:
            path.write_bytes(kind.data)


def main(folder, seed, number):
    warnings.simplefilter('ignore')
    logging.disable() # decoders talk
    kinds = [*pictures(), *data_sets(), *own_files()]
    if sys.platform == 'linux':
        limit_memory()
    read_whole(kinds, Path(folder))
    read_damaged(kinds, Path(folder), int(number), np.random.default_rng(int(seed)))


if __name__ == '__main__':
    main(*sys.argv[1:])
