"""Masks to Label Studio and back, with the real server: predicted, shown, corrected over its API, exported, taken.

Slow, and only where BCD_LABEL_STUDIO names its program (CONTRIBUTING.md says how it is installed).
"""
import json, os, signal, socket, subprocess, time, urllib.error, urllib.request
from contextlib import contextmanager
import numpy as np, pytest, torch
from PIL import Image
from bcd_fast.commands.importing import bcd_import
from bcd_fast.commands.predict import bcd_predict
from bcd_fast.data.corrected import read_corrected
from bcd_fast.exchange.entries import eight_bits
from bcd_fast.exchange.label_studio import brush_mask, encode_brush
from bcd_fast.masker.maskers import make_masker
from bcd_fast.prediction.models import save_model
from conftest import folder_of

PROGRAM = os.environ.get('BCD_LABEL_STUDIO', '')
TOKEN = '0123456789abcdef0123456789abcdef01234567'
ALONE = dict(SENTRY_DSN='', FRONTEND_SENTRY_DSN='', COLLECT_ANALYTICS='false', LATEST_VERSION_CHECK='false')
# the last is of 8 bits, as browsers show them
NAMES = 'objects/north/7.png', 'objects/north/9.tif', 'objects/north/b 1+2.png'
SHAPE = 48, 64
SHORT = 'trainer.epochs=1', 'trainer.steps=4', 'trainer.bs=4', 'trainer.paste=4', 'model.width=4', 'bar=false'
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PROGRAM, reason='BCD_LABEL_STUDIO names no label-studio')]


def picture(seed, kind):
    "Speckle, with a bright square where an object is."
    rng = np.random.default_rng(seed)
    a = rng.gamma(4, 20, SHAPE)
    if kind == 'objects':
        a[10:30, 20:44] += 150
    return a.clip(0, 255).astype(np.uint8)


@pytest.fixture
def data(tmp_path):
    "A folder of pictures in sub-folders."
    names = [*NAMES, *(f'objects/south/{i}.png' for i in range(9)), *(f'backgrounds/{i}.png' for i in range(12))]
    for i, name in enumerate(names):
        path = tmp_path/'site/data'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        a = picture(i, name.split('/')[0])
        Image.fromarray(a if name == NAMES[2] else a.astype(np.uint16)*90).save(path)
    return tmp_path/'site/data'


def bright(model, x):
    "A masker that finds something."
    return np.where(np.isnan(x[:, 0]), 0, x[:, 0]).astype(np.float32)


def predict(model, images, out):
    with pytest.MonkeyPatch.context() as m:
        for module in ('tiles', 'predict'):
            m.setattr(f'bcd_fast.prediction.{module}.predict_batch', bright)
        return bcd_predict([str(model), str(images), '--out', str(out), '--write', 'labelstudio'])


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Server:
    "What the test asks of Label Studio."
    def __init__(self, port):
        self.address = f'http://127.0.0.1:{port}'
    def ask(self, path, content=None):
        "The answer to a question, or to something that is sent."
        data = None if content is None else json.dumps(content).encode()
        headers = {'Authorization': f'Token {TOKEN}', 'Content-Type': 'application/json'}
        request = urllib.request.Request(self.address+path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    def json(self, path, content=None):
        return json.loads(self.ask(path, content))
    def wait(self, process, seconds=300):
        "Until it answers."
        end = time.monotonic()+seconds
        while time.monotonic() < end:
            assert process.poll() is None, 'Label Studio ended'
            try:
                return self.json('/api/projects/')
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        raise TimeoutError(f'Label Studio did not answer within {seconds} s')


def end(process):
    "End a program with all that it started."
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


@contextmanager
def label_studio(folder, root):
    "A server of its own, which looks for nothing on the internet."
    env = dict(os.environ, **ALONE, HOME=str(folder), LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN='true',
               LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED='true', LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=str(root))
    for name in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'MPLBACKEND'):
        env.pop(name, None)
    port = free_port()
    words = ['start', '--no-browser', '--internal-host', '127.0.0.1', '--port', str(port), '--data-dir', str(folder),
             '--username', 'a@example.org', '--password', 'a-long-password', '--user-token', TOKEN, '--log-level',
             'ERROR']
    with open(folder/'log', 'wb') as log:
        process = subprocess.Popen([PROGRAM, *words], env=env, stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    server = Server(port)
    try:
        server.wait(process)
        yield server
    finally:
        end(process)


def project_of(server, out, storage):
    "A project with our labelling interface, our storage and our tasks."
    config = (out/'label_config.xml').read_text()
    project = server.json('/api/projects/', dict(title='masks', label_config=config))['id']
    about = dict(project=project, title='pictures', path=str(storage), use_blob_urls=True, regex_filter='.*')
    server.json('/api/storages/localfiles', about)
    tasks = json.loads((out/'tasks.json').read_text())
    assert server.json(f'/api/projects/{project}/import', tasks)['task_count'] == len(tasks)
    return project


def corrected(result):
    "Regions as a person leaves them: a corner of each is erased, another label paints beside it; and the mask."
    object_, unknown, out = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), []
    for region in result:
        mask = brush_mask(region['value']['rle'], SHAPE)
        mask[:16, :30] = mask[38:46, :12] = False
        object_ |= mask
        out.append(region | dict(value=region['value'] | dict(rle=encode_brush(mask))))
    unknown[40:44, 3:9] = True
    value = dict(format='rle', rle=encode_brush(unknown), brushlabels=['unknown'])
    region = dict(id='mine', type='brushlabels', from_name='tag', to_name='image', original_width=SHAPE[1],
                  original_height=SHAPE[0], image_rotation=0, value=value)
    return out+[region], np.where(object_, 255, np.where(unknown, 127, 0))


def correct(server, project):
    "Annotate the first two pictures over the API: of the second a person says that nothing is there."
    wanted = {}
    for task in server.json(f'/api/tasks?project={project}&fields=all')['tasks']:
        name = task['data']['picture']
        prediction, = task['predictions']
        if name == NAMES[1]:
            assert prediction['result'] and 0 < prediction['score'] <= 1
            result, wanted[name] = corrected(prediction['result'])
        elif name == NAMES[0]:
            result, wanted[name] = [], np.zeros(SHAPE)
        else:
            continue
        server.json(f'/api/tasks/{task["id"]}/annotations/', dict(result=result))
    return wanted


def shown_by(server, project):
    "What a browser is sent of each picture."
    tasks = server.json(f'/api/tasks?project={project}&fields=all')['tasks']
    return {t['data']['picture']: server.ask(t['data']['image']) for t in tasks}


def test_there_and_back(data, tmp_path, capsys, call):
    torch.manual_seed(0)
    model = save_model(tmp_path/'model', make_masker('small', 4, 1), 32, {})
    out = tmp_path/'site/masks'
    folder, images = out/'labelstudio', data/'objects/north'
    status = predict(model, images, out)
    said = capsys.readouterr().out
    assert status == 0 and f'bcd_import EXPORT {data}' in said
    assert f'DOCUMENT_ROOT={tmp_path};' in said and f'add {tmp_path/"site"} as local storage' in said
    (tmp_path/'server').mkdir()
    with label_studio(tmp_path/'server', tmp_path) as server:
        project = project_of(server, folder, tmp_path/'site')
        sent = shown_by(server, project)
        wanted = correct(server, project)
        export = server.ask(f'/api/projects/{project}/export?exportType=JSON&download_all_tasks=true')
    for name in NAMES:
        (tmp_path/'sent.png').write_bytes(sent[name])
        assert (np.asarray(Image.open(tmp_path/'sent.png')) == eight_bits(data/name)).all()
    (tmp_path/'export.json').write_bytes(export)
    assert bcd_import([str(tmp_path/'export.json'), str(data)]) == 0
    said = capsys.readouterr().out
    assert '2 mask(s)' in said and '1 picture(s) not looked at' in said
    assert len(wanted) == 2 and {0, 127, 255} == {*np.unique(wanted[NAMES[1]])}
    for name, mask in wanted.items():
        path = (data/'corrected'/name).with_suffix('.png')
        assert (read_corrected(path, SHAPE) == mask).all()
    (data/NAMES[2]).unlink() # training wants one kind of numbers
    status, said, err = call('bcd_train', 'data=folder', f'data.path={data}', *SHORT)
    assert status == 0, err
    assert '2 of 11 object pictures have masks that are learned from' in said
    assert (tmp_path/folder_of(said)/'model/model.json').is_file()
