"""Damage files of every format that is read, by a seeded generator, and read them: `python malformed.py FOLDER SEED NUMBER` prints one JSON line a file."""
import gzip, io, json, logging, resource, struct, sys, time, warnings
from pathlib import Path
from unittest.mock import patch
import h5py, numpy as np, tifffile, torch
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


def stream(path):
    "Read a picture in bands, as prediction does with large ones."
    with patch('bcd_fast.prediction.tiles.SMALL', 16), open_images(path) as sources:
        return [s.rows(a, min(a+8, s.shape[0])) for s in sources for a in range(0, s.shape[0], 8)]


def encoded(image, kind, **options):
    with io.BytesIO() as f:
        Image.fromarray(image).save(f, kind, **options)
        return f.getvalue()


def written(write, name):
    "The bytes of what `write` puts into a file."
    path = Path(sys.argv[1])/name
    write(path)
    return path.read_bytes()


def hdf5(path, **sets):
    with h5py.File(path, 'w') as f:
        for k, v in sets.items():
            f.create_dataset(k, data=v, chunks=True, compression='gzip')


def npz(path):
    values = np.stack(np.meshgrid([1.], [1., 2.], [.5, 1.], np.arange(2.), np.arange(2.), np.arange(2.), indexing='ij'), -1).reshape(-1, 6)
    np.savez_compressed(path, imgs=rng.integers(0, 2, (len(values), 64, 64), np.uint8), latents_values=values)


def model(path):
    torch.manual_seed(0)
    save_model(path.parent/'model', make_masker('small', 4, 1), 64, dict(k=2, assign='robust', backgrounds=[3, 4]))
    path.write_bytes(b'')


# suffix, bytes, how it is read; the model's two files are damaged one at a time
def formats():
    top = Path(sys.argv[1])
    model(top/'x')
    idx = struct.pack('>HBB3I', 0, 8, 3, 30, 28, 28)+rng.integers(0, 255, 30*784, np.uint8).tobytes()
    both = (read_pictures, stream)
    yield from (('.png', encoded(GRAY, 'PNG'), both), ('.png', encoded(DEEP, 'PNG'), both), ('.png', encoded(np.dstack([GRAY]*4), 'PNG'), both), ('.jpg', encoded(GRAY, 'JPEG'), both), ('.bmp', encoded(GRAY, 'BMP'), both))
    for k, options in enumerate((dict(), dict(compression='zlib', tile=(16, 16)), dict(compression='lzw', rowsperstrip=8))):
        for image in (GRAY, DEEP, DEEP.astype(np.float32), np.stack([GRAY]*3)):
            yield '.tif', written(lambda p: tifffile.imwrite(p, image, photometric='minisblack', **options), f't{k}.tif'), both
    for array in (GRAY, np.stack([DEEP]*5), DEEP.astype(np.complex64)):
        yield '.npy', written(lambda p: np.save(p, array), 'a.npy'), both
    yield '.h5', written(lambda p: hdf5(p, images=np.stack([GRAY]*6)), 'a.h5'), both
    yield '.h5', written(lambda p: hdf5(p, data=np.stack([np.tile(DEEP, (4, 4))]*2).astype(np.complex64), segments=np.ones((2, 192, 160), int)), 'b.h5'), (lambda p: read_patches(p),)
    yield '', idx, (read_idx,)
    yield '.gz', gzip.compress(idx), (read_idx,)
    yield '.npz', written(npz, 'd.npz'), (lambda p: read_dsprites(p),)
    yield '.png', encoded(GRAY, 'PNG'), (lambda p: read_pair(p, p),)
    yield '.csv', b'path,label\n'+b''.join(b'%d.png,%d\n' % (i, i % 2) for i in range(40)), (read_table,)
    yield '.safetensors', written(lambda p: write_state(p, dict(a=torch.rand(9), b=[1, None, 'x'])), 's'), (read_state,)
    yield '.safetensors', written(lambda p: save_clusters(make_clusters('sinkhorn', 2, 2).fit(rng.random((40, 4)).astype(np.float32)), p), 'c'), (load_clusters,)
    yield '.safetensors', written(lambda p: save_weights(make_masker('small', 4, 1), p), 'w'), (lambda p: load_weights(make_masker('small', 4, 1), p),)
    yield '.json', written(lambda p: p.write_text(json.dumps(dict(command='x', runs=[dict(seed=0)]))), 'r.json'), (read_results,)
    yield '', b'{"settings": {}}\n\n{"file": "a", "outputs": []}\n', (lambda p: Manifest(p, dict()),)
    yield from ((f'model/{n}', (top/'model'/n).read_bytes(), (lambda p: load_model(p.parent),)) for n in ('model.json', 'model.safetensors'))


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
    try:
        read(path)
        said = 'read'
    except InputError as e:
        said = f'refused: {e}'
    except BaseException as e:
        said = f'{type(e).__name__}: {e}'
    return said, time.perf_counter()-start


def main(folder, seed, number):
    warnings.simplefilter('ignore')
    logging.disable() # decoders talk
    folder, kinds, g = Path(folder), list(formats()), np.random.default_rng(int(seed))
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    for k, (suffix, data, reads) in enumerate(kinds): # whole files first: what is damaged must have been right
        path = folder/suffix if '/' in suffix else folder/f'whole{k}{suffix}'
        path.write_bytes(data)
        for read in reads:
            print(json.dumps(dict(file=path.name, whole=True, said=attempt(read, path)[0])), flush=True)
    before = peak()
    for i in range(int(number)):
        suffix, data, reads = kinds[i % len(kinds)]
        path = folder/suffix if '/' in suffix else folder/f'{i}{suffix}'
        path.write_bytes(damage(data, g))
        for read in reads:
            print(path, file=sys.stderr, flush=True) # the last one, where it crashes or hangs
            said, seconds = attempt(read, path)
            print(json.dumps(dict(file=str(path), whole=False, said=said, seconds=seconds, megabytes=peak()-before)), flush=True)
        if '/' in suffix:
            path.write_bytes(data)


if __name__ == '__main__':
    main(*sys.argv[1:])
