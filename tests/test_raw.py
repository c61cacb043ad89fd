"Raw side-scan files become pictures with places; damaged ones end in a sentence. The files are written here."
import json, math, struct, subprocess, sys, tracemalloc, warnings
import numpy as np, pytest, tifffile, torch
from xtf_files import xtf_head, xtf_ping
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.commands.waterfall import bcd_waterfall, regions_on_the_ground
from bcd_fast.core import InputError
from bcd_fast.data.folders import Windows, read_folder, walk_files
from bcd_fast.data.formats import read_pictures
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from bcd_fast.raw.slant_range import Places, on_ground
from bcd_fast.raw.waterfalls import RAW_SUFFIXES, read_sidecar, rows_of, survey

pytest.importorskip('pyxtf')
known = pytest.importorskip('sonarlight.sonar_class')


def jsf_side(samples, channel, number=0, subsystem=20, at=(11.5, 54.25), **more):
    "A message of type 80."
    body = np.asarray(samples, '<u2').tobytes()
    m, t = bytearray(16), bytearray(240)
    struct.pack_into('<HBBHBBB', m, 0, 0x1601, 9, 0, 80, 0, subsystem, channel)
    struct.pack_into('<I', m, 12, more.get('size', 240+len(body)))
    struct.pack_into('<iiI', t, 0, 1614834366+number, 0, number)
    struct.pack_into('<ii', t, 80, round(at[0]*600000), round(at[1]*600000))
    struct.pack_into('<h', t, 88, 2)
    struct.pack_into('<HI', t, 114, more.get('samples', len(samples)), 100000)
    struct.pack_into('<HH', t, 126, 500*subsystem, 600*subsystem)
    struct.pack_into('<if', t, 144, 10000, 1500)
    struct.pack_into('<h', t, 168, more.get('weight', 0))
    struct.pack_into('<H', t, 172, 9000)
    return bytes(m)+bytes(t)+body


def sl_frame(samples, kind=2, survey_type=5, number=0, **more):
    "A frame of an SL2 or SL3 file."
    dtype, count = (known.sl2_frame_dtype, 'packet_size') if kind == 2 else (known.sl3_frame_dtype, 'echo_size')
    h = np.zeros(1, dtype)
    where = dict(min_range=-100, max_range=100, x=1280000, y=7000000, gps_heading=math.pi/2, water_depth=30)
    about = dict(frame_size=dtype.itemsize+len(samples), survey_type=survey_type, id=number, seconds=1000*number)
    for name, value in (where | about | {count: len(samples)} | more).items():
        h[name] = value
    return h.tobytes()+bytes(samples)


def sl_head(kind=2):
    return struct.pack('<4H', kind, 0, 1, 0)


def sides(i, n=6, dtype=np.uint16):
    "What the two sides of a ping hear: no number is there twice."
    return [np.arange(100*i, 100*i+n).astype(dtype), np.arange(100*i+50, 100*i+50+n).astype(dtype)]


def three(kind):
    "A file of three pings as its records, the head first."
    if kind == 'xtf':
        return [xtf_head(), *(xtf_ping(sides(i), i) for i in range(3))]
    if kind == 'jsf':
        return [b'', *(jsf_side(sides(i)[0], 0, i)+jsf_side(sides(i)[1], 1, i) for i in range(3))]
    form = 2 if kind == 'sl2' else 3
    heard = [np.concatenate([a[::-1], b]) % 256 for a, b in map(sides, range(3))]
    return [sl_head(form), *(sl_frame(a.tolist(), form, number=i) for i, a in enumerate(heard))]


def expected(kind, rows=3):
    "Its picture: port mirrored, first ping on top."
    a = np.stack([np.concatenate([p[::-1], s]) for p, s in map(sides, range(rows))])
    return (a % 256).astype(np.uint8) if kind.startswith('sl') else a


KINDS = 'xtf', 'jsf', 'sl2', 'sl3'


@pytest.mark.parametrize('kind', KINDS)
def test_samples_come_back(kind, tmp_path):
    path = tmp_path/f'line.{kind}'
    path.write_bytes(b''.join(three(kind)))
    p, = read_pictures(path)
    assert p.values.dtype == (np.uint8 if kind.startswith('sl') else np.uint16)
    assert (p.values[0] == expected(kind)).all() and p.valid is None and p.name == path.name
    band, = survey(path).bands
    assert band.track.rows['number'].tolist() == [0, 1, 2] and (np.diff(band.track.rows['time']) == 1).all()
    at = np.array([band.track.rows[k][1] for k in ('x', 'y', 'heading', 'altitude')])
    assert np.allclose(at, (11.537, 53.209, 90, 9.144) if kind.startswith('sl') else (11.5, 54.25, 90, 10), atol=.01)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing was written beside it


@pytest.mark.parametrize('size, dtype', [(1, np.uint8), (2, np.uint16), (4, np.int32)])
def test_kinds_of_samples(size, dtype, tmp_path):
    (tmp_path/'a.xtf').write_bytes(xtf_head(size=size)+b''.join(xtf_ping(sides(i % 2, dtype=dtype)) for i in range(3)))
    p, = read_pictures(tmp_path/'a.xtf')
    assert p.values.dtype == (np.float32 if size == 4 else dtype)
    assert p.values[0, 1].tolist() == [105, 104, 103, 102, 101, 100, 150, 151, 152, 153, 154, 155]


@pytest.mark.parametrize('kind', ('xtf', 'jsf'))
def test_weights_are_applied(kind, tmp_path):
    path = tmp_path/f'a.{kind}'
    sides_of = [np.array([8, 16], np.uint16), np.array([4, 12], np.uint16)]
    if kind == 'xtf':
        path.write_bytes(xtf_head()+xtf_ping(sides_of, weight=2)+xtf_ping(sides_of, 1, weight=3))
    else:
        path.write_bytes(b''.join(jsf_side(a, i, n, weight=2+n) for n in (0, 1) for i, a in enumerate(sides_of)))
    p, = read_pictures(path)
    assert p.values.dtype == np.float32 and p.values[0].tolist() == [[4, 2, 1, 3], [2, 1, .5, 1.5]]


def two_bands(path):
    "Low and high frequency, with other numbers of samples."
    if path.suffix == '.xtf':
        pings = [xtf_ping([*sides(i), *sides(i+7, 9)], i) for i in range(3)]
        path.write_bytes(xtf_head((1, 2, 1, 2))+b''.join(pings))
    else:
        path.write_bytes(b''.join(jsf_side(sides(i+7*b, 6+3*b)[c], c, i, 20+b)
                                  for i in range(3) for b in (0, 1) for c in (0, 1)))
    return path


@pytest.mark.parametrize('kind', ('xtf', 'jsf'))
def test_channels(kind, tmp_path):
    path = two_bands(tmp_path/f'two.{kind}')
    low, high = read_pictures(path)
    assert [p.name for p in (low, high)] == [f'two.{kind}[low]', f'two.{kind}[high]']
    assert low.values.shape == (1, 3, 12) and high.values.shape == (1, 3, 18)
    only, = read_pictures(path, key='high')
    assert (only.values == high.values).all() and high.values[0, 0, 9] == 750
    with pytest.raises(InputError, match='none is called .hi.'):
        read_pictures(path, key='hi')


def test_frequencies_name_channels_not_their_order(tmp_path):
    (tmp_path/'a.xtf').write_bytes(xtf_head((1, 2, 1, 2), frequencies=(900, 400))+xtf_ping([*sides(0), *sides(1)]))
    high, = read_pictures(tmp_path/'a.xtf', key='high')
    assert high.values[0, 0, 6] == 50


def test_ranges_and_missing_sides(tmp_path):
    pings = [xtf_ping(sides(0)), xtf_ping(sides(1, 3), 1), xtf_ping(sides(2, 12), 2, reach=100.),
             xtf_ping(sides(3)[1:], 3, numbers=[1])]
    (tmp_path/'a.xtf').write_bytes(xtf_head()+b''.join(pings))
    p, = read_pictures(tmp_path/'a.xtf')
    assert p.values.shape == (1, 4, 24) and p.valid.shape == (4, 24)
    assert p.values[0, 0, 12:18].tolist() == [50, 51, 52, 53, 54, 55] and not p.valid[0, 18:].any()
    assert p.values[0, 1, 12:18].tolist() == [150, 150, 151, 151, 152, 152]  # half as many samples for the same range
    assert p.values[0, 2, 12:].tolist() == [*range(250, 262)] and p.valid[2].all()
    assert p.values[0, 3, 12:18].tolist() == [*range(350, 356)] and not p.valid[3, :12].any()
    (tmp_path/'b.xtf').write_bytes(xtf_head()+b''.join(xtf_ping(sides(i)[1:], i, numbers=[1]) for i in range(4)))
    p, = read_pictures(tmp_path/'b.xtf')
    assert p.values.shape == (1, 4, 6) and p.valid is None  # starboard alone


def test_other_packets_and_channels_are_passed_over(tmp_path):
    note = struct.pack('<HBBHHHI', 0xFACE, 1, 0, 0, 0, 0, 256)+bytes(242)
    below = xtf_ping([np.zeros(4, np.uint16)], 9, numbers=[2])
    head = xtf_head((1, 2, 0), frequencies=(100, 10))
    (tmp_path/'a.xtf').write_bytes(head+note+xtf_ping(sides(0))+below+note+xtf_ping(sides(1), 1))
    p, = read_pictures(tmp_path/'a.xtf')
    assert (p.values[0] == expected('xtf', 2)).all()


@pytest.mark.parametrize('kind', KINDS)
def test_cut_anywhere(kind, tmp_path):
    "As many rows as whole pings; before the first a sentence; a cut between two pings is none."
    records, path = three(kind), tmp_path/f'a.{kind}'
    whole, ends = b''.join(records), np.cumsum([len(r) for r in records])
    for n in sorted({*range(0, len(whole), 37), *(e+d for e in ends for d in (-1, 0, 1) if 0 <= e+d <= len(whole))}):
        path.write_bytes(whole[:n])
        pings = int((ends[1:] <= n).sum())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            try:
                p, = read_pictures(path)
            except InputError as e:
                assert str(path) in str(e) and pings == 0, n
                continue
        middle = len(ends) > pings and n not in ends and (kind != 'jsf' or n-ends[pings] != len(records[1])//2)
        assert bool(said) == middle and all('read as far as whole pings go' in str(w.message) for w in said), n
        got = p.values[0] if kind != 'jsf' else p.values[0][:pings]  # of a JSF ping one side may be whole
        assert (got == expected(kind)[:len(got)][:, -got.shape[1]:]).all() and len(got) == pings or kind == 'jsf'


def begins(kind):
    return {'xtf': b'\x7a'+bytes(2000), 'jsf': b'\x02\x16'+bytes(400), 'sl2': struct.pack('<4H', 1, 0, 0, 0)+bytes(400),
            'sl3': b'RIFF'+bytes(400)}[kind]


@pytest.mark.parametrize('kind', KINDS)
def test_refused(kind, tmp_path):
    path = tmp_path/f'a.{kind}'
    for data, why in ((begins(kind), 'it is no '), (b'', 'empty'), (three(kind)[0] or jsf_side([1], 0, subsystem=0),
                                                                    'no side-scan ping')):
        path.write_bytes(data)
        with pytest.raises(InputError, match=why) as e:
            read_pictures(path)
        assert str(e.value).count('\n') == 0 and str(path) in str(e.value)


def absurd(kind):
    "Files with numbers that would take gigabytes or never end."
    first = three(kind)[0]+three(kind)[1]
    ping = bytearray(three(kind)[2])
    def changed(at, form, value):
        p = bytearray(ping)
        struct.pack_into(form, p, at, value)
        return first+bytes(p)
    if kind == 'xtf':
        many = [changed(256+42, '<I', v) for v in (2**32-1, 2**31, 2**20)]
        return [*many, changed(10, '<I', 0), changed(10, '<I', 13), changed(10, '<I', 2**32-1), changed(4, '<H', 65535)]
    if kind == 'jsf':
        return [changed(12, '<I', 2**32-1), changed(12, '<I', 0), changed(16+114, '<H', 65535)]
    return [changed(28 if kind == 'sl2' else 8, '<H', n) for n in (0, 1, 65535)]


@pytest.mark.parametrize('kind', KINDS)
def test_absurd_counts(kind, tmp_path):
    "The first ping is kept, nothing is allocated for the numbers, and nothing loops."
    path = tmp_path/f'a.{kind}'
    for data in absurd(kind):
        path.write_bytes(data)
        tracemalloc.start()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            p, = read_pictures(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert p.values.shape[1] == 1 and said and path.name in str(said[0].message) and peak < 2**23


def test_absurd_ranges(tmp_path):
    for reach in (float('nan'), float('inf'), -1., 1e30, 9e4):
        pings = [xtf_ping(sides(i), i, reach=reach if i == 2 else 50.) for i in range(4)]
        (tmp_path/'a.xtf').write_bytes(xtf_head()+b''.join(pings))
        p, = read_pictures(tmp_path/'a.xtf')
        assert p.values.shape[2] <= 4*12 and p.values[0, 0, -6:].max() <= 55


def test_index_beside(tmp_path):
    (tmp_path/'a.xtf').write_bytes(b''.join(three('xtf')))
    index = tmp_path/'a.pyxtf_idx'
    index.write_bytes(b"cos\nsystem\n(S'touch "+str(tmp_path/'ran').encode()+b"'\ntR.")
    with pytest.raises(InputError) as e:
        read_pictures(tmp_path/'a.xtf')
    assert str(e.value).startswith(f'{index} lies beside a.xtf: ') and str(e.value).endswith(f'Remove {index}.')
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('kind, module', [('xtf', 'pyxtf'), ('sl2', 'sonarlight.sonar_class')])
def test_missing_extra(kind, module, tmp_path, monkeypatch, capsys):
    (tmp_path/f'a.{kind}').write_bytes(b''.join(three(kind)))
    monkeypatch.setitem(sys.modules, module, None)
    assert bcd_waterfall([str(tmp_path), '--out', str(tmp_path/'out')]) == 2
    assert "pip install 'bcd_fast[sonar]'" in capsys.readouterr().err


@pytest.mark.parametrize('kind', KINDS)
def test_flipped_bits(kind, tmp_path):
    "A picture or a sentence, never another error, and never much memory."
    whole, path, rng = b''.join(three(kind)), tmp_path/f'a.{kind}', np.random.default_rng(0)
    head = len(three(kind)[0])
    found = []
    for i in range(250):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 9)):
            at = rng.integers(head if i % 2 else 0, len(data))
            data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                found += [p.values.size for p in read_pictures(path)]
            except InputError as e:
                found.append(0)
                assert '\n' not in str(e)
            try:
                s = survey(path)
                next(rows_of(s, s.bands[0], 16))
            except (InputError, ValueError):
                pass
    assert max(found) < 2**22 and sum(n > 0 for n in found) > 50


LONG = '''
import sys
from pathlib import Path
from bcd_fast.core import peak_rss_mb
from bcd_fast.raw.waterfalls import rows_of, survey
list(survey(sys.argv[2]).bands)
before = peak_rss_mb()
s = survey(sys.argv[1])
n = sum(len(v) for _, v, _ in rows_of(s, s.bands[0], 64))
print(n, peak_rss_mb()-before)
'''


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    "200 MB take a few."
    a = [np.arange(32000, dtype=np.uint16)]*2
    for name, n in (('long.xtf', 1550), ('short.xtf', 4)):
        with open(tmp_path/name, 'wb') as f:
            f.write(xtf_head())
            for i in range(n):
                f.write(xtf_ping(a, i))
    assert (tmp_path/'long.xtf').stat().st_size > 190e6
    words = [sys.executable, '-W', 'ignore', '-c', LONG, tmp_path/'long.xtf', tmp_path/'short.xtf']
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    n, more = done.stdout.split()
    assert n == '1550' and float(more) < 40


def flat_places(**more):
    about = dict(x=np.full(20, 11.), y=54+np.arange(20)*1e-5, heading=np.zeros(20), altitude=np.full(20, 6.))
    return Places(**about | dict(spacing=.5, nadir=30) | more)


def test_places_over_the_date_line_and_in_metres():
    lon, lat = on_ground(flat_places(x=np.full(20, 179.9999), heading=np.full(20, 360.)))([[30+20, 5]])[0]
    assert lon > 180 and abs((lon-179.9999)*65578-8) < .05 and abs(lat-54.000045) < 1e-7
    x, y = on_ground(flat_places(x=np.full(20, 5e5), y=6e6+np.arange(20.), degrees=False))([[30-20, 5]])[0]
    assert abs(x-(5e5-8)) < 1e-6 and abs(y-(6e6+4.5)) < 1e-6  # no heading: the course is north
    for wrong in (dict(x=np.full(20, np.nan)), dict(altitude=np.zeros(20)), dict(spacing=math.nan),
                  dict(y=np.full(20, 1e9))):
        with pytest.raises(ValueError):
            on_ground(flat_places(**wrong))


@pytest.fixture
def line(tmp_path):
    "An XTF line to the north with a bright rectangle to starboard, 8 bits, two frequencies."
    (tmp_path/'in').mkdir()
    rng, pings = np.random.default_rng(0), []
    for i in range(160):
        a = [rng.integers(35, 45, n).astype(np.uint8) for n in (112, 112, 80, 80)]
        if 64 <= i < 96:
            a[1][40:80] = 220
        pings.append(xtf_ping(a, i, at=(11+1e-9, 54+i*1e-5), reach=56.))
    (tmp_path/'in/line.xtf').write_bytes(xtf_head((1, 2, 1, 2), size=1)+b''.join(pings))
    torch.manual_seed(0)
    save_model(tmp_path/'model', make_masker('small', 4, 1), 64, dict(k=2, assign='robust', backgrounds=[3, 4]))
    return tmp_path


def ring(feature):
    return np.array(feature['geometry']['coordinates'][0])


def test_predict(line):
    "Masks are named after the file, and regions lie on the earth."
    words = [str(line/'model'), str(line/'in'), '--out', str(line/'out'), '--threshold', '.01',
             '--write', 'masks', 'geojson']
    assert bcd_predict(words) == 0
    assert {p.name for p in (line/'out').glob('line*')} == {f'line_{i}.{e}' for i in (0, 1) for e in ('png', 'geojson')}
    mask, = read_pictures(line/'out/line_0.png')
    assert mask.values.shape == (1, 160, 224)
    found = json.loads((line/'out/line_0.geojson').read_text())['features']
    assert found and all(f['properties']['coordinates'] == 'longitude, latitude (WGS 84)' for f in found)
    assert all(abs(ring(f)[:, 0]-11).max() < .001 and abs(ring(f)[:, 1]-54.0008).max() < .002 for f in found)
    assert bcd_predict([str(line/'model'), str(line/'in/line.xtf'), '--out', str(line/'one'), '--key', 'high']) == 0
    assert read_pictures(line/'one/line.png')[0].values.shape == (1, 160, 160)


def test_waterfall_and_place(line, capsys):
    out = line/'pictures'
    assert bcd_waterfall([str(line/'in'), '--out', str(out), '--band', 'low', '--pings', '100', '--overlap', '20']) == 0
    names = ['line_low_000000-000099', 'line_low_000080-000159']
    assert sorted(p.name for p in out.glob('l*')) == sorted(n+e for n in names for e in ('.tif', '.pings.json'))
    assert walk_files(out, 'pictures') == ([out/f'{n}.tif' for n in names], [])  # sidecars are no files left out
    whole, _ = read_pictures(line/'in/line.xtf')
    first, second = (read_pictures(out/f'{n}.tif')[0].values for n in names)
    assert (first == whole.values[:, :100]).all() and (second == whole.values[:, 80:]).all()
    (line/'masks').mkdir()
    for n, a in zip(names, (first, second)):
        tifffile.imwrite(line/f'masks/{n}.tif', np.where(a[0] > 100, 255, 0).astype(np.uint8))
    assert bcd_waterfall([str(out), '--place', str(line/'masks'), '--out', str(line/'geo')]) == 0
    polygon, point = json.loads((line/f'geo/{names[0]}.geojson').read_text())['features']
    lon, lat = ring(polygon).T
    east = (lon-11)*math.radians(1)*6378137*math.cos(math.radians(54))*1.00218
    ground = [math.sqrt(r*r-100) for r in (20, 40)]  # samples 40 to 80 of half a metre, altitude 10
    # the heading is 90: starboard is south
    south = -(lat-54)*math.radians(1)*6378137*.9966
    assert abs(lon-11).max() < 1e-6 and abs(east).max() < .1
    assert abs(south.max()-(ground[1]-63.5*1.113)) < .7 and abs(south.min()-(ground[0]-95.5*1.113)) < .7
    assert point['geometry']['type'] == 'Point' and lat.min() < point['geometry']['coordinates'][1] < lat.max()
    (line/f'masks/{names[0]}.tif').unlink()
    tifffile.imwrite(line/f'masks/{names[1]}.tif', np.zeros((80, 9), np.uint8))
    capsys.readouterr()
    assert bcd_waterfall([str(out), '--place', str(line/'masks'), '--out', str(line/'geo')]) == 2
    said = capsys.readouterr().err
    assert 'holds no mask for' in said and '80x9 pixels and its picture 80x224' in said


def test_pixels_without_data_stay_so(tmp_path):
    (tmp_path/'a.xtf').write_bytes(xtf_head()+b''.join(xtf_ping(sides(i, 3 if i == 5 else 6), i, reach=25. if i == 5
                                                                 else 50.) for i in range(40)))
    assert bcd_waterfall([str(tmp_path/'a.xtf'), '--out', str(tmp_path/'out')]) == 0
    made, = read_pictures(tmp_path/'out/a_000000-000039.tif')
    raw, = read_pictures(tmp_path/'a.xtf')
    assert (made.values == raw.values).all() and (made.valid == raw.valid).all() and (~raw.valid).sum() == 6
    side = read_sidecar(tmp_path/'out/a_000000-000039.pings.json')
    assert side['positions'] == 'degrees' and side['pings']['altitude'] == [10.]*40


def test_nothing_is_written_over(line, capsys):
    out = line/'pictures'
    out.mkdir()
    tifffile.imwrite(out/'line_low_000000-000159.tif', np.zeros((4, 4), np.uint8))
    before = (out/'line_low_000000-000159.tif').read_bytes()
    assert bcd_waterfall([str(line/'in'), '--out', str(out)]) == 2
    assert 'none of ours' in capsys.readouterr().err and (out/'line_low_000000-000159.tif').read_bytes() == before


def test_piles_of_raw_files(tmp_path):
    "A data set from raw files, one picture of each."
    rng = np.random.default_rng(0)
    for pile in ('objects', 'backgrounds'):
        (tmp_path/pile).mkdir()
        for i in range(12):
            pings = [xtf_ping([rng.integers(0, 255, 40).astype(np.uint8) for _ in range(2)], k) for k in range(70)]
            (tmp_path/pile/f'{i}.XTF').write_bytes(xtf_head(size=1)+b''.join(pings))
    ds = read_folder(tmp_path, windows=Windows(size=32))
    assert not ds.unreadable and len(ds.objects.images) >= 12 and ds.objects.images.shape[1:] == (1, 32, 32)


def test_regions_without_a_place():
    rows = {k: [None]*4 for k in ('x', 'y', 'heading', 'altitude', 'first_return')}
    side = dict(format='bcd_fast waterfall 1', rows=[0, 4], columns=dict(port=3, starboard=3), metres_a_column=.5,
                positions='degrees', ground_range=False, pings=rows)
    mask = np.zeros((4, 6), bool)
    mask[1:3, 4] = True
    found, note = regions_on_the_ground(mask, side)
    polygon, point = found['features']
    assert note and polygon['properties']['coordinates'].startswith('pixels')
    assert point['geometry']['coordinates'] == [4.5, 1.5] and polygon['properties']['region'] == 1


def test_suffixes_are_read_in_any_case():
    assert RAW_SUFFIXES == {'.xtf', '.jsf', '.sl2', '.sl3'}


def test_no_two_files_share_a_name(tmp_path):
    "Files of one name in two folders, and one that is named as a channel of another."
    for folder in ('a', 'b'):
        (tmp_path/folder).mkdir()
    two_bands(tmp_path/'a/line.xtf')
    for i, name in enumerate(('b/line.xtf', 'a/line_low.xtf')):
        (tmp_path/name).write_bytes(xtf_head()+xtf_ping(sides(i+1)))
    assert bcd_waterfall([str(tmp_path/'a'), str(tmp_path/'b'), '--out', str(tmp_path/'out')]) == 0
    found = {p.name: int(read_pictures(p)[0].values[0, 0, -1]) for p in (tmp_path/'out').glob('*.tif')}
    assert sorted(found.values()) == [55, 155, 255, 758]


def test_as_the_packages_read(tmp_path):
    "What pyxtf and sonarlight make of the files of these tests."
    pyxtf = pytest.importorskip('pyxtf')
    (tmp_path/'a.xtf').write_bytes(b''.join(three('xtf')))
    head, first, *_ = pyxtf.xtf_read_gen(str(tmp_path/'a.xtf'))
    assert [a.tolist() for a in first.data] == [a.tolist() for a in sides(0)] and head.NavUnits == 3
    assert (first.SensorXcoordinate, first.SensorYcoordinate, first.SensorHeading) == (11.5, 54.25, 90)
    assert first.SensorPrimaryAltitude == 10 and first.ping_chan_headers[1].SlantRange == 50
    at, frames = 8, []
    for i in range(3):
        frames.append(sl_frame([1, 2, 3, 4], number=i, first_byte=at))
        at += len(frames[-1])
    (tmp_path/'a.sl2').write_bytes(sl_head()+b''.join(frames))
    table = known.Sonar(str(tmp_path/'a.sl2'), clean=False).df
    track = survey(tmp_path/'a.sl2').bands[0].track.rows
    assert np.allclose(table[['longitude', 'latitude', 'water_depth']].iloc[0],
                       [track[k][0] for k in ('x', 'y', 'altitude')])
    assert table['frames'].iloc[0].tolist() == [1, 2, 3, 4]
