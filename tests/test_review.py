"The page on which masks are corrected: who is let in, what is refused, and real strokes in a headless browser."
import http.client, importlib.util, json, os, re, shutil, signal, socket, threading, time, webbrowser, zlib
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
import numpy as np, pytest, tifffile
from PIL import Image
from bcd_fast.core import InputError, only_one
from bcd_fast.commands.review import bcd_review, serve
from bcd_fast.data.corrected import (
    corrected_of, png_bytes, pictures_of, read_corrected, without_picture, write_corrected)
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from bcd_fast.prediction.suggestions import suggest
from bcd_fast.review.session import UNTOUCHED, Draft, FilePredictor, Review, draft_path, read_draft, write_draft
from bcd_fast.review.server import GET, HEADERS, POST, Server
from conftest import posix

H, W = 120, 160


def grays(i):
    "A gray that grows to the right, and in a corner a bright object."
    a = np.tile(np.linspace(20, 120, W), (H, 1))
    a[10:40, 100:140] = 200+i
    return a.round().astype(np.uint8)


class Bright:
    "A masker that can be reckoned with."
    threshold, bands = .6, None
    def __call__(self, path):
        return np.asarray(Image.open(path), np.float32)/255


@pytest.fixture
def folder(tmp_path):
    for pile, n in (('objects', 4), ('backgrounds', 1)):
        (tmp_path/'data'/pile).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(grays(i)).save(tmp_path/f'data/{pile}/{i}.png')
    return tmp_path/'data'


@contextmanager
def served(folder, masker=None):
    "A server in a thread."
    names = {n: p for n, p in pictures_of(folder).items() if n.startswith('objects')}
    server = Server(Review(Path(folder), names, masker or Bright()))
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.end()


@pytest.fixture
def server(folder):
    with served(folder) as s:
        yield s


def request(server, method, path, body=None, headers=(), known=True):
    "Status, headers, and what came; with the token unless it is not `known`."
    c = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=20)
    more = {'X-Review-Token': server.door.token} if known else {}
    c.request(method, path, body, {**more, **dict(headers)})
    r = c.getresponse()
    data = r.read()
    c.close()
    kind = r.headers['Content-Type']
    return r.status, r.headers, json.loads(data) if data and kind == 'application/json' else data


def refused(answer, status, part):
    "One sentence, as JSON."
    found, headers, said = answer
    assert found == status, said
    assert set(said) == {'error'} and part in said['error'] and said['error'].count('\n') == 0
    assert said['error'].endswith('.') and 'Traceback' not in said['error']


EVERYTHING = [('GET', p) for p in ('/', '/page.js', '/page.css', *GET)]+[('POST', p) for p in POST]


def test_every_address_wants_the_token(server):
    wrong = ({}, {'X-Review-Token': 'x'*43}, {'X-Review-Token': server.door.token[:-1]},
             {'Cookie': f'bcd_review_1={server.door.token}'}, {'Cookie': f'{server.door.cookie}=a'})
    for (method, path), headers in product(EVERYTHING, wrong):
        refused(request(server, method, f'{path}?picture=0', headers=headers, known=False), 403, 'lacks the token')
    assert not (server.review.folder/'corrected').exists()


@pytest.mark.parametrize('wrong, part', [
    ({'Host': 'evil.example'}, 'is called evil.example'), ({'Host': '127.0.0.1:1'}, 'is called 127.0.0.1:1'),
    ({'Origin': 'https://evil.example'}, 'a page of https://evil.example asked'),
    ({'Origin': 'null'}, 'a page of null')])
def test_every_address_wants_its_own_page(server, wrong, part):
    for method, path in EVERYTHING:
        refused(request(server, method, f'{path}?picture=0', headers=wrong), 403, part)
    assert not (server.review.folder/'corrected').exists()


def test_no_frame_or_form_of_another_page(server):
    for (method, path), site in product([a for a in EVERYTHING if a[1] != '/'], ('cross-site', 'same-site')):
        refused(request(server, method, f'{path}?picture=0', headers={'Sec-Fetch-Site': site}), 403, 'elsewhere')


def test_the_first_page_sets_the_cookie_and_hides_the_token(server):
    status, headers, _ = request(server, 'GET', f'/?token={server.door.token}', known=False)
    assert status == 303 and headers['Location'] == '/'
    assert {'HttpOnly', 'SameSite=Strict', 'Path=/'} <= set(headers['Set-Cookie'].split('; '))
    cookie = {'Cookie': headers['Set-Cookie'].split(';')[0]}
    for path in ('/', '/page.js', '/page.css', '/api/pictures'):
        status, headers, data = request(server, 'GET', path, headers=cookie, known=False)
        assert status == 200 and data
        assert all(headers[k] == v for k, v in HEADERS.items())
        assert 'Access-Control-Allow-Origin' not in headers
    refused(request(server, 'GET', f'/api/pictures?token={server.door.token}', known=False), 403, 'lacks the token')


@pytest.mark.parametrize('path', [
    '/../settings.ini', '/page.js/../../core.py', '/%2e%2e/server.py', '//etc/passwd', '/session.py', '/etc/passwd',
    '/api/../page.py', '/.', '/page.JS'])
def test_nothing_else_is_served(server, path):
    refused(request(server, 'GET', path), 404, 'here')
    refused(request(server, 'POST', path), 404, 'here')


@pytest.mark.parametrize('words, part', [
    ('picture=9', 'no picture number 9'), ('picture=../../a', 'picture=../../a'), ('picture=-1', 'is no whole number'),
    ('picture=%00', 'is no whole number'), ('', 'picture=nothing'), ('picture=1e1', 'is no whole number'),
    ('picture=objects/0.png', 'is no whole number'), ('picture=99999999999999', 'is no whole number'),
    ('&'.join(['a=b']*20), 'cannot be read')])
def test_pictures_go_by_number(server, words, part):
    for path in set(GET)-{'/api/pictures'}:
        refused(request(server, 'GET', f'{path}?{words}'), 400, part)
    for path in set(POST)-{'/api/tab'}:
        refused(request(server, 'POST', f'{path}?{words}&level=128&base=mask', b'x'), 400, part)


@pytest.mark.parametrize('body, part', [
    (png_bytes(np.zeros((H+1, W), np.uint8)), f'has ({H+1}, {W}) pixels'), (b'', 'cannot be read as a PNG'),
    (b'GIF89a', 'cannot be read as a PNG'), (png_bytes(np.zeros((H, W), np.uint8))[:-30], 'cannot be read as a PNG'),
    (png_bytes(np.full((H, W), 128, np.uint8)), 'has the value 128'),
    (png_bytes(np.dstack([np.eye(H, W, dtype=np.uint8)*255]*2+[np.zeros((H, W), np.uint8)])), 'is not gray')])
def test_no_other_mask_is_taken(server, body, part):
    for path in ('/api/right?picture=0', '/api/draft?picture=0&level=128&base=prediction'):
        refused(request(server, 'POST', path, body), 400, part)
    assert not list(server.review.folder.rglob('corrected/**/*.png'))


def test_a_draft_has_its_own_words(server):
    strokes = png_bytes(np.full((H, W), UNTOUCHED, np.uint8))
    for words, part in (('level=0&base=mask', 'level 0'), ('level=256&base=mask', 'level 256'),
                        ('level=128&base=x', '128, x'), ('level=&base=mask', 'level=nothing')):
        refused(request(server, 'POST', f'/api/draft?picture=0&{words}', strokes), 400, part)
    refused(request(server, 'POST', '/api/right?picture=0', strokes), 400, 'has the value 64') # a draft is not right


def test_too_much_is_refused_before_it_is_read(server):
    limit = 5*H*W+2**16
    for n, status, part in ((limit+1, 413, f'{limit+1:,} bytes are sent, and {limit:,}'), (10**30, 413, 'at most'),
                            (-1, 411, 'Content-Length'), ('1_0', 411, 'Content-Length'), ('', 411, 'Content-Length')):
        answer = request(server, 'POST', '/api/right?picture=0', headers={'Content-Length': str(n)})
        refused(answer, status, part)
    chunked = {'Transfer-Encoding': 'chunked', 'Content-Length': '3'}
    refused(request(server, 'POST', '/api/right?picture=0', headers=chunked), 411, 'Content-Length')


@pytest.mark.parametrize('method', ['PUT', 'DELETE', 'OPTIONS', 'HEAD', 'PATCH'])
def test_other_methods(server, method):
    status, _, said = request(server, method, '/api/right?picture=0')
    assert status == 501 and (method == 'HEAD' or said == {'error': f'{method} is not known here.'})


def answer_to(s, sent):
    "All that a server says to bytes after which nothing comes."
    s.sendall(sent)
    s.shutdown(socket.SHUT_WR)
    answer = b''
    while part := s.recv(2**16):
        answer += part
    return answer


@pytest.mark.parametrize('sent', [
    b'', b'\r\n\r\n', b'\x00\x01\xff\r\n\r\n', b'GET\r\n\r\n', b'GET / HTTP/9.9\r\n\r\n',
    b'GET / HTTP/1.1\r\n: x\r\n\r\n',
    b'GET /'+b'a'*70000+b' HTTP/1.1\r\n\r\n', b'GET / HTTP/1.1\r\n'+b'A: b\r\n'*200+b'\r\n',
    b'GET //[ HTTP/1.1\r\nHost: x\r\n\r\n', b'POST /api/right?picture=0 HTTP/1.1\r\nContent-Length: 99\r\n\r\nabc'])
def test_what_is_no_request(server, sent, capfd):
    "No traceback, no end of the server, and nothing is let in."
    with socket.create_connection(('127.0.0.1', server.server_port), timeout=20) as s:
        answer = answer_to(s, sent)
    assert b' 200 ' not in answer and b'Traceback' not in answer
    assert request(server, 'GET', '/api/pictures')[0] == 200
    assert capfd.readouterr().err == ''


def test_a_request_that_breaks_off_writes_nothing(server):
    token = server.door.token
    head = f'POST /api/right?picture=0 HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Review-Token: {token}\r\n'
    body = png_bytes(np.zeros((H, W), np.uint8))
    with socket.create_connection(('127.0.0.1', server.server_port), timeout=20) as s:
        assert b'bytes were to come' in answer_to(s, f'{head}Content-Length: {len(body)}\r\n\r\n'.encode()+body[:-1])
    assert server.review.done == {}


def test_a_page_that_waits_at_the_end_gives_no_traceback(folder, capfd):
    "The prediction that was begun is finished, others are not begun."
    begun, go = threading.Event(), threading.Event()
    def quietly(*words):
        with suppress(OSError, http.client.HTTPException): # the answer may not come
            request(words[0], 'GET', words[1])
    class Slow(Bright):
        def __call__(self, path):
            begun.set()
            go.wait(20)
            return super().__call__(path)
    with served(folder, Slow()) as server:
        asked = [threading.Thread(target=quietly, args=(server, f'/api/levels?picture={i}'), daemon=True)
                 for i in (0, 2)]
        for t in asked:
            t.start()
        assert begun.wait(20)
        while len(server.review.ahead.made) < 4: # both wait, and so do the pictures after them
            time.sleep(.01)
        threading.Timer(.3, go.set).start()
    for t in asked:
        t.join(20)
    assert len(server.review.shapes) < 4 and capfd.readouterr().err == ''


def test_the_last_tab_writes(server):
    mask = png_bytes(np.zeros((H, W), np.uint8))
    for tab in 'ab':
        assert request(server, 'POST', '/api/tab', headers={'X-Review-Tab': tab})[0] == 200
    for path in ('right', 'draft', 'nothing', 'forget'):
        answer = request(server, 'POST', f'/api/{path}?picture=0&level=9&base=mask', mask, {'X-Review-Tab': 'a'})
        refused(answer, 409, 'in another tab')
    assert request(server, 'POST', '/api/right?picture=0', mask, {'X-Review-Tab': 'b'})[0] == 200


def test_a_full_disk_is_said(server, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda f: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    mask = png_bytes(np.zeros((H, W), np.uint8))
    for path in ('right?picture=0', 'nothing?picture=0', 'draft?picture=0&level=128&base=prediction'):
        refused(request(server, 'POST', f'/api/{path}', mask), 400, 'No space left on device')
    assert server.review.done == {} and not list(server.review.folder.rglob('corrected/**/*.png'))


def test_a_mistake_of_ours_is_said_and_the_next_request_answered(folder, capfd):
    class Broken(Bright):
        def __call__(self, path):
            raise ZeroDivisionError('oops')
    with served(folder, Broken()) as server:
        refused(request(server, 'GET', '/api/picture?picture=0'), 500, 'has a fault')
        assert request(server, 'GET', '/api/pictures')[0] == 200
    assert 'ZeroDivisionError: oops' in capfd.readouterr().err


def gray(server, path):
    "A mask as the page gets it."
    return np.frombuffer(zlib.decompress(request(server, 'GET', path)[2]), np.uint8).reshape(H, W)


def test_what_the_page_gets(folder):
    mask = np.where(grays(0) > 99, 255, 127).astype(np.uint8)
    write_corrected(folder, 'objects/0.png', mask)
    strokes = np.full((H, W), UNTOUCHED, np.uint8)
    strokes[:5] = 127
    write_draft(folder, 'objects/1.png', Draft(strokes, 77))
    with served(folder) as server:
        about = [request(server, 'GET', f'/api/picture?picture={i}')[2] for i in range(2)]
        assert [a['base'] for a in about] == ['mask', 'prediction']
        assert about[1]['draft'] == dict(level=77, base='prediction')
        assert np.array_equal(gray(server, '/api/mask?picture=0'), mask) # as it is
        assert np.array_equal(gray(server, '/api/draft?picture=1'), strokes)
        assert np.array_equal(gray(server, '/api/levels?picture=2') >= 128, grays(2)/255 > .6)
        refused(request(server, 'GET', '/api/mask?picture=1'), 404, 'no such mask')


@pytest.mark.parametrize('made', ['deep', 'float', 'bands', 'colour'])
def test_pictures_of_any_kind_are_shown(tmp_path, made):
    "16 bits, floats, many bands and colours, by the model itself."
    (tmp_path/'objects').mkdir()
    a = grays(0)
    pictures = dict(deep=a.astype(np.uint16)*30, float=a.astype(np.float32)/7, bands=np.stack([a]*6),
                    colour=np.dstack([a]*3))
    kind = dict(photometric='rgb') if made == 'colour' else dict(photometric='minisblack')
    tifffile.imwrite(tmp_path/'objects/a.tif', pictures[made], **kind)
    model = save_model(tmp_path/'model', make_masker('small', 4, 6 if made == 'bands' else 1), 32, {})
    with served(tmp_path, FilePredictor(model)) as server:
        status, _, data = request(server, 'GET', '/api/image?picture=0')
        assert status == 200, data
        (tmp_path/'shown.png').write_bytes(data)
        shown = np.asarray(Image.open(tmp_path/'shown.png'))
        assert shown.dtype == np.uint8 and shown.shape[:2] == (H, W) and np.ptp(shown) > 150
        assert gray(server, '/api/levels?picture=0').shape == (H, W)


def test_drafts_are_not_learned_from(folder):
    "Nor said to be masks of no picture."
    write_draft(folder, 'objects/1.png', Draft(np.full((H, W), 255, np.uint8)))
    write_draft(folder, 'objects/gone.png', Draft(np.full((H, W), 255, np.uint8)))
    assert corrected_of(folder) == {} and without_picture(folder) == []
    assert len(pictures_of(folder)) == 5


# ---- The command


@posix
def test_command(tmp_path, folder, monkeypatch, capsys):
    "It opens the page; one session a folder; Ctrl-C ends it in a sentence."
    model = save_model(tmp_path/'model', make_masker('small', 4, 1), 32, {})
    found = {}
    def person(address): # in the place of a browser
        port, token = re.fullmatch(r'http://127\.0\.0\.1:(\d+)/\?token=(\S+)', address).groups()
        def work():
            c = http.client.HTTPConnection('127.0.0.1', int(port), timeout=20)
            c.request('POST', '/api/nothing?picture=2', headers={'X-Review-Token': token})
            found.update(json.loads(c.getresponse().read()))
            with pytest.raises(InputError, match='is in use by another process'), only_one(folder):
                pass
            found['held'] = True
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=work, daemon=True).start()
    monkeypatch.setattr(webbrowser, 'open', person)
    (tmp_path/'names.txt').write_text('\n'.join(f'objects/{i}.png' for i in range(4)))
    assert bcd_review([str(model), str(folder), '--pictures', str(tmp_path/'names.txt')]) == 0
    out, err = capsys.readouterr()
    assert found['done'] == 'nothing' and found['held'] and err == ''
    assert out.splitlines()[0].startswith('4 picture(s) at http://127.0.0.1:')
    last = f'1 corrected mask(s) in {folder/"corrected"}, 1 of them of pictures where nothing is'
    assert out.splitlines()[-1] == last
    assert read_corrected(folder/'corrected/objects/2.png').max() == 0
    with only_one(folder):
        pass # free again


@pytest.fixture
def on_the_page(monkeypatch):
    "The names of each session that was opened, in their order; nobody waits for it."
    found = []
    def note(self):
        found.append(self.review.names)
        raise KeyboardInterrupt
    monkeypatch.setattr(Server, 'serve_forever', note)
    return found


def test_pictures_come_as_suggested(tmp_path, folder, on_the_page, capsys):
    "Those of `suggest`, in its order, by the model or by the run that made it; those with a draft first."
    model = save_model(tmp_path/'run/model', make_masker('small', 4, 1), 32, {})
    wanted = [s.picture for s in suggest(model, folder, 3)[0]]
    words = [str(folder), '--number', '3', '--no-browser']
    assert bcd_review([str(model), *words]) == bcd_review([str(model.parent), *words]) == 0
    assert on_the_page == [wanted]*2 and capsys.readouterr().err == ''
    write_draft(folder, wanted[2], Draft(np.full((H, W), UNTOUCHED, np.uint8)))
    write_corrected(folder, wanted[1], np.zeros((H, W), np.uint8))
    assert bcd_review([str(model), *words]) == 0
    assert on_the_page[2][0] == wanted[2] and wanted[1] not in on_the_page[2]


def test_what_is_not_suggested_is_said(tmp_path, folder, on_the_page, capsys, monkeypatch):
    "Large pictures and damaged ones come last where there is room, and are named where there is none."
    model = save_model(tmp_path/'model', make_masker('small', 4, 1), 32, {})
    monkeypatch.setattr('bcd_fast.prediction.suggestions.SMALL', H*W)
    Image.fromarray(np.zeros((H, W+1), np.uint8)).save(folder/'objects/large.png')
    (folder/'objects/damaged.png').write_bytes(b'no picture')
    assert bcd_review([str(model), str(folder), '--number', '99', '--no-browser']) == 0
    out, err = capsys.readouterr()
    assert on_the_page[0][-2:] == ['objects/damaged.png', 'objects/large.png'] and err == ''
    assert 'the last 2 picture(s) could not be compared with the others' in out
    assert bcd_review([str(model), str(folder), '--number', '4', '--no-browser']) == 0
    out, err = capsys.readouterr()
    assert len(on_the_page[1]) == 4 and not {'objects/damaged.png', 'objects/large.png'} & {*on_the_page[1]}
    assert err.startswith('left out:') and 'damaged.png' in err and f'large.png has {H}x{W+1} pixels' in err


def test_large_pictures_alone_are_shown(tmp_path, on_the_page, monkeypatch):
    "A folder of them is no reason to end."
    model = save_model(tmp_path/'model', make_masker('small', 4, 1), 32, {})
    monkeypatch.setattr('bcd_fast.prediction.suggestions.SMALL', 10)
    (tmp_path/'data/objects').mkdir(parents=True)
    for i in range(3):
        Image.fromarray(grays(i)).save(tmp_path/f'data/objects/{i}.png')
    assert bcd_review([str(model), str(tmp_path/'data'), '--number', '2', '--no-browser']) == 0
    assert on_the_page == [['objects/0.png', 'objects/1.png']]


def test_no_browser(server, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, 'open', opened.append)
    for browser in (False, True):
        monkeypatch.setattr(server, 'serve_forever', lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        monkeypatch.setattr(server, 'end', lambda: None)
        serve(server, browser)
        assert server.address in capsys.readouterr().out
        assert opened == [server.address]*browser
    monkeypatch.undo()


# ---- The page, by hand

CHROME = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
FLAGS = ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking',
         'disable-component-update', 'disable-sync', 'force-device-scale-factor=1')


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not importlib.util.find_spec('selenium'):
        pytest.skip('selenium is not installed')
    if not CHROME or not DRIVER:
        pytest.skip("Chromium and its driver are not installed (Debian's packages chromium and chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    o = webdriver.ChromeOptions()
    o.binary_location = CHROME
    for flag in (*FLAGS, f'user-data-dir={tmp_path_factory.mktemp("chromium")}'):
        o.add_argument(f'--{flag}')
    o.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    b = webdriver.Chrome(options=o, service=Service(DRIVER))
    screen = dict(width=1000, height=700, deviceScaleFactor=1, mobile=False)
    b.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
    yield b
    b.quit()


class Page:
    "The page as a person uses it."
    def __init__(self, browser, server):
        from selenium.webdriver.common.keys import Keys
        self.b, self.server, self.folder, self.Keys = browser, server, server.review.folder, Keys
        self.load(server.address)
    def load(self, address):
        self.b.get(address)
        self.wait('!S.busy && S.mask')
    def wait(self, condition, seconds=20):
        end = time.monotonic()+seconds
        while not self.b.execute_script(f'return Boolean({condition})'):
            assert time.monotonic() < end, (condition, self.status())
            time.sleep(.02)
    def status(self):
        return self.b.execute_script("return $('status').textContent")
    def saved(self):
        self.wait('S.change === S.kept && !S.sending')
    def actions(self):
        from selenium.webdriver.common.action_chains import ActionChains
        return ActionChains(self.b, duration=10)
    def keys(self, *keys):
        self.actions().send_keys(*keys).perform()
    def chord(self, *keys):
        a = self.actions()
        for k in keys[:-1]:
            a.key_down(k)
        a.send_keys(keys[-1])
        for k in keys[:-1]:
            a.key_up(k)
        a.perform()
    def go(self, a, x, y):
        view = self.b.find_element('id', 'view')
        dx, dy = self.b.execute_script(
            'const [x, y] = screenOf(arguments[0], arguments[1]);'
            'return [x-view.clientWidth/2, y-view.clientHeight/2]', x, y)
        return a.move_to_element_with_offset(view, round(dx), round(dy))
    def stroke(self, *points):
        "A line with the mouse; points are pixels of the picture."
        a = self.go(self.actions(), *points[0]).click_and_hold()
        for p in points[1:]:
            self.go(a, *p)
        a.release().perform()
    def slide(self, name, value):
        "A slider as a keyboard moves it: each step is an event."
        self.b.execute_script(
            "const s = $(arguments[0]); for (const kind of ['input', 'change']) {"
            's.value = arguments[1]; s.dispatchEvent(new Event(kind)); }', name, value)
    def mask(self):
        a = self.b.execute_script('return Array.from(S.mask)')
        return np.array(a, np.uint8).reshape(H, W)
    def right(self, key=None):
        at = self.b.execute_script('return S.at')
        self.keys(key or self.Keys.ENTER)
        self.wait(f'S.pictures[{at}].done && (!S.busy || $("end").open)')
        return read_corrected(self.folder/f'corrected/objects/{at}.png', (H, W))
    def quiet(self):
        "Nothing went wrong on the console."
        return [l for l in self.b.get_log('browser') if l['level'] == 'SEVERE']


@pytest.fixture
def page(browser, server):
    p = Page(browser, server)
    yield p
    assert p.quiet() == []


PREDICTED = [np.where(grays(i)/255 > .6, 255, 0) for i in range(4)]


def near(p, q, radius, margin=0.):
    "Pixels whose middle is nearer than the radius to the line from p to q, each (x, y)."
    y, x = np.mgrid[:H, :W]+.5
    p, q = np.array(p, float), np.array(q, float)
    d = q-p
    t = (((x-p[0])*d[0]+(y-p[1])*d[1])/max(d@d, 1e-9)).clip(0, 1)
    return np.hypot(x-p[0]-t*d[0], y-p[1]-t*d[1]) <= radius+margin


def test_a_stroke_is_in_the_mask_and_the_rest_is_the_prediction(page):
    size = page.b.execute_script('return S.size')
    page.stroke((20, 60), (60, 90))
    page.saved()
    assert read_draft(page.folder, 'objects/0.png', (H, W)).level == 128
    assert corrected_of(page.folder) == {} # nobody has said that it is right
    found = page.right()
    core, around = (near((20, 60), (60, 90), size/2, m) for m in (-1, 1))
    assert core.sum() > 400 and (found[core] == 255).all()
    assert np.array_equal(found[~around], PREDICTED[0][~around])
    assert not draft_path(page.folder, 'objects/0.png').exists()
    assert page.b.execute_script('return S.at') == 1 and 'objects/0.png: mask saved' in page.status()


def test_eraser_unknown_undo_and_redo(page):
    page.keys('e')
    page.stroke((90, 25), (150, 25)) # across the object
    page.keys('u')
    page.stroke((30, 100), (80, 100))
    erased, open_ = page.mask()[25, 105:135], page.mask()[100, 32:78]
    assert erased.max() == 0 and (open_ == 127).all()
    page.chord(page.Keys.CONTROL, 'z')
    assert (page.mask() == 127).sum() == 0 and page.mask()[25, 105:135].max() == 0
    page.chord(page.Keys.CONTROL, 'z')
    assert np.array_equal(page.mask(), PREDICTED[0])
    page.saved()
    assert not draft_path(page.folder, 'objects/0.png').exists() # nothing is left to be saved
    page.chord(page.Keys.CONTROL, page.Keys.SHIFT, 'z')
    page.chord(page.Keys.CONTROL, page.Keys.SHIFT, 'z')
    found = page.right()
    assert found[25, 105:135].max() == 0 and (found[100, 32:78] == 127).all()
    rest = ~(near((90, 25), (150, 25), 7) | near((30, 100), (80, 100), 7))
    assert np.array_equal(found[rest], PREDICTED[0][rest])


def test_the_threshold_moves_the_mask_and_strokes_stay_on_top(page):
    page.slide('level', 60)
    share = .6*60/128
    expected = np.where(grays(0)/255 >= share, 255, 0)
    assert (page.mask() != expected).mean() < .01 and (page.mask() > 0).sum() > 2*(PREDICTED[0] > 0).sum()
    assert page.b.execute_script("return $('levelIs').textContent") == f'{share:.3f}'
    page.keys('e')
    page.stroke((120, 60), (120, 110))
    page.slide('level', 1)
    assert (page.mask()[65:105, 118:122] == 0).all() and page.mask()[60:, 130:].min() == 255
    page.keys(*',,..')
    page.slide('level', 255)
    page.keys('b')
    page.stroke((20, 20), (40, 20))
    found = page.right()
    assert (found[20, 22:38] == 255).all() and found[30:].max() == 0 # and above 255 there is nothing


def test_nothing_here_writes_an_empty_mask(page):
    page.stroke((20, 60), (60, 90))
    found = page.right('n')
    assert found.shape == (H, W) and found.max() == 0
    assert page.b.execute_script('return S.pictures[0].done') == 'nothing'


def test_a_closed_browser_loses_nothing(browser, folder):
    with served(folder) as server:
        page = Page(browser, server)
        page.stroke((20, 60), (60, 90))
        page.slide('level', 200)
        before = page.mask()
        page.saved()
        browser.get('about:blank')
    with served(folder) as server: # another day
        page = Page(browser, server)
        assert np.array_equal(page.mask(), before) and before[75, 40] == 255
        assert 'Draft saved' in page.status()
        page.slide('level', 128) # the strokes are still strokes
        page.keys('e')
        page.stroke((20, 60), (60, 90))
        assert page.mask()[75, 40] == 0
        browser.get('about:blank')


def test_a_mask_that_is_there_opens_as_it_is(browser, folder):
    mask = np.zeros((H, W), np.uint8)
    mask[50:70, 50:90], mask[90:, :40] = 255, 127
    write_corrected(folder, 'objects/0.png', mask)
    with served(folder) as server:
        page = Page(browser, server)
        assert np.array_equal(page.mask(), mask)
        assert page.b.execute_script("return $('level').disabled")
        page.keys('r') # from the prediction instead
        assert np.array_equal(page.mask(), PREDICTED[0])
        page.chord(page.Keys.CONTROL, 'z')
        assert np.array_equal(page.mask(), mask)
        assert np.array_equal(page.right(), mask)


def test_keys(page):
    run = page.b.execute_script
    page.keys(']', ']', '[')
    assert run('return S.size') == 14
    page.keys('m')
    assert run('return S.look') == 'outline'
    page.keys('c', '+')
    assert run('return S.stretch') and run('return S.scale') > 0
    page.keys('s')
    page.wait('S.at === 1 && !S.busy')
    page.keys('p')
    page.wait('S.at === 0 && !S.busy')
    page.keys(page.Keys.ARROW_LEFT, 'x') # a point, without a mouse
    where = run('return [S.brush.x, S.brush.y]')
    assert page.mask()[int(where[1]), int(where[0])] == 255 and where != [W/2, H/2]
    page.keys('?')
    assert run("return $('keys').open")
    page.keys('n') # the list of keys is open: it writes nothing
    page.keys(page.Keys.ESCAPE)
    assert not run("return $('keys').open") and not run('return S.pictures[0].done')


def test_zoom_and_pan(page):
    "A stroke is where the mouse is, whatever is shown of the picture."
    run = page.b.execute_script
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    scale = run('return S.scale')
    origin = ScrollOrigin.from_element(page.b.find_element('id', 'view'), 60, 40)
    under = ('const p = pictureOf(Math.floor(view.clientWidth/2)+60, Math.floor(view.clientHeight/2)+40);'
             'return [p.x, p.y]')
    there = run(under)
    page.actions().scroll_from_origin(origin, 0, -600).perform()
    page.wait(f'S.scale > {1.5*scale}')
    assert np.allclose(run(under), there, atol=.5) # what is under the mouse stays there
    before = run('return [S.x, S.y]')
    a = page.actions().key_down(' ')
    page.go(a, 80, 60).click_and_hold().move_by_offset(-50, -30).release().key_up(' ').perform()
    after = run('return [S.x, S.y]')
    assert np.allclose(np.subtract(after, before), (-50, -30), atol=1) and not run('return S.steps.length')
    page.stroke((70, 80), (85, 88))
    assert (page.mask()[near((70, 80), (85, 88), 5)] == 255).all()
    assert np.array_equal(page.mask()[~near((70, 80), (85, 88), 7)], PREDICTED[0][~near((70, 80), (85, 88), 7)])


def test_the_mask_is_seen(page):
    "Amber over the object, as an area or along its edge."
    def colours(x, y):
        at = 'const r = devicePixelRatio, [x, y] = screenOf(arguments[0], arguments[1]); drawNow();'
        return page.b.execute_script(f'{at} return [...pen.getImageData(x*r, y*r, 1, 1).data]', x, y)
    inside, outside = colours(120, 25), colours(40, 80)
    assert inside[0]-inside[2] > 50 and outside[0] == outside[2]
    page.keys('m')
    inside = colours(120, 25)
    assert inside[0] == inside[2] and colours(100.5, 25)[0]-colours(100.5, 25)[2] > 50
    page.keys('m')
    edge = colours(100.5, 25)
    assert edge[0] == edge[2]
    page.slide('bright', 100)
    assert colours(40, 80)[0] > outside[0]+40


def test_themes_and_narrow_windows(page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    def theme(name):
        features = [{'name': 'prefers-color-scheme', 'value': name}]
        page.b.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': features})
        time.sleep(.1)
        return sum(map(int, re.findall(r'\d+', page.b.execute_script(colour))[:3]))
    assert theme('light') > 600 and theme('dark') < 150
    page.keys('t')
    assert page.b.execute_script('return document.documentElement.dataset.theme') == 'light'
    theme('light')
    wide = 'return [document.documentElement.scrollWidth, $("right").getBoundingClientRect().right, innerWidth]'
    scroll, right, inner = page.b.execute_script(wide)
    assert inner == 1000 and scroll <= 1000 and right <= 1000


def test_every_control_has_a_name_and_can_be_reached(page):
    names = """return [...document.querySelectorAll('button, input, canvas')].map(e => {
      const words = [e.getAttribute('aria-label'), e.labels?.[0]?.textContent, e.textContent];
      return [e.id || e.outerHTML.slice(0, 60), (words.find(w => w) || '').trim(), e.tabIndex];
    })"""
    found = page.b.execute_script(names)
    assert len(found) > 25
    assert [f for f in found if not f[1] or f[2] < 0] == []
    page.keys(page.Keys.TAB)
    ring = 'const e = document.activeElement; return [e.tagName, getComputedStyle(e).outlineStyle]'
    assert page.b.execute_script(ring) == ['BUTTON', 'solid']


def test_the_end_and_a_lost_server(page):
    for i in range(3):
        page.right('n')
    page.keys(page.Keys.ENTER)
    page.wait('$("end").open')
    assert '4 masks written, 3 of them' in page.b.execute_script("return $('endText').textContent")
    page.keys(page.Keys.ESCAPE)
    page.server.shutdown()
    page.server.server_close()
    page.stroke((20, 60), (60, 90))
    page.wait('S.failed')
    assert page.status().startswith('bcd_review does not answer')
    assert page.b.execute_script('return S.change !== S.kept')
    page.b.execute_script('S.kept = S.change; clearTimeout(S.timer)') # let it go
    page.quiet()
