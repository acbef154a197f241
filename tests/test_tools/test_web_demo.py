"""tools/deployment/web: a browser shows what demo_onnx.py draws. Needs a browser and onnxruntime-web."""

import json
import os
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness import ROOT
from tests.harness.children import PATIENCE
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, make_checkpoint
from tools.deployment import demo_onnx, export

for name in ('onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(name, reason='ONNX export needs requirements/deploy.txt')
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
MODULES = [Path(f) for f in (*os.environ.get('NODE_PATH', '').split(os.pathsep), ROOT / 'node_modules') if f]
RUNTIME = next((folder for folder in MODULES if (folder / 'onnxruntime-web').is_dir()), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason='no chromium or google-chrome on PATH'),
    pytest.mark.skipif(RUNTIME is None, reason='no onnxruntime-web in NODE_PATH: npm install it'),
]
PILLOW = """
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=48, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=41),
    dict(type='PackInputs'),
]
val_dataloader['dataset']['pipeline'] = pipeline
"""
# Follows the page; what it returns is posted to the server.
PROBE = """
<script type="module">
import { follow, labels } from './demo.js';
const settled = async () => {
  const state = document.body.dataset;
  while (!['done', 'failed'].includes(state.state)) await new Promise((r) => setTimeout(r, 9));
};
const state = async (action) => {
  document.body.dataset.state = '';
  await action();
  await settled();
};
const text = (id) => document.getElementById(id).innerText;
const pixels = (id) => {
  const { width, height } = document.getElementById(id);
  return Array.from(document.getElementById(id).getContext('2d').getImageData(0, 0, width, height).data);
};
const seen = () => ({
  state: document.body.dataset.state, status: text('status'), classes: text('classes'), notes: text('notes'),
  mask: pixels('mask'), image: pixels('image'),
});
const choose = async (name) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([await (await fetch(name)).blob()], name));
  const input = document.getElementById('file');
  await state(() => { input.files = transfer.files; input.dispatchEvent(new Event('change')); });
  return seen();
};
let result;
try {
  await settled();
  result = await (async () => { SCRIPT })();
} catch (error) {
  result = String(error.stack ?? error);
}
fetch('result', { method: 'POST', body: JSON.stringify(result) });
</script>
"""


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what is posted."""

    def do_POST(self):
        self.server.result = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(200)
        self.end_headers()
        self.server.posted.set()

    def log_message(self, *_):
        pass


def in_browser(folder, script):
    """Open the page of a folder in a browser; returns what the script in it returns."""
    page = (folder / 'index.html').read_text()
    (folder / 'probe.html').write_text(page.replace('</html>', PROBE.replace('SCRIPT', script) + '</html>'))
    if not (folder / 'node_modules').exists():
        (folder / 'node_modules').symlink_to(RUNTIME)
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder)) as server:
        server.posted = threading.Event()
        threading.Thread(target=server.serve_forever).start()
        address = f'http://127.0.0.1:{server.server_port}/probe.html'
        options = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder}/profile']
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        browser = subprocess.Popen([BROWSER, *options, address], start_new_session=True, **quiet)
        try:
            assert server.posted.wait(PATIENCE), 'the page did not answer'
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    assert not isinstance(server.result, str), server.result
    return server.result


def write_images(folder):
    """Images of several kinds and sizes in a folder; their names."""
    rng = np.random.default_rng(0)

    def smooth(height, width):
        return demo_onnx.resize(rng.integers(0, 256, (7, 9, 3)).astype('uint8'), (height, width))

    Image.fromarray(smooth(64, 96)).save(folder / 'even.png')
    Image.fromarray(smooth(61, 45)).save(folder / 'odd.png')
    Image.fromarray(smooth(40, 70)[:, :, 0]).save(folder / 'grey.png')
    exif = Image.Exif()
    # Turned by 90 degrees.
    exif[0x0112] = 6
    Image.fromarray(smooth(50, 83)).save(folder / 'turned.jpg', exif=exif)
    Image.new('RGB', (1, 1), (200, 30, 90)).save(folder / 'pixel.png')
    return ['even.png', 'odd.png', 'grey.png', 'turned.jpg', 'pixel.png']


def test_segmentor(here, capsys):
    make_checkpoint(here, SEGMENTATION, '')
    names = write_images(here)
    export.main(['small.py', 'small.pth', 'model.onnx', '--web', 'web', '--sample', 'odd.png'])
    # How to get onnxruntime-web, and how to open the page.
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ['npm', 'python']
    assert sorted(os.listdir('web')) == ['demo.js', 'index.html', 'model.onnx', 'sample.png']
    for name in names:
        shutil.copy(name, 'web')
    (here / 'web/broken.png').write_text('x')
    chosen = ''.join(f"await choose('{name}'), " for name in (*names, 'broken.png'))
    sample = "(await state(() => document.getElementById('sample').click()), seen())"
    *found, broken, sampled = in_browser(here / 'web', f'return [{chosen} {sample}];')

    model = demo_onnx.Model('model.onnx')
    wanted = [demo_onnx.read(Path(name)) for name in names]
    for name, image, got in zip(names, wanted, found, strict=True):
        assert got['state'] == 'done', got['status']
        size = image.shape[:2]
        np.testing.assert_array_equal(np.reshape(got['image'], (*size, 4))[..., :3], image, err_msg=name)
        labels = demo_onnx.label_map(model(demo_onnx.prepare(model, image)), size)
        mask = np.reshape(got['mask'], (*size, 4))[..., :3]
        # Of a pixel between two classes another processor may see the other one.
        assert (mask == np.array(model.palette)[labels]).all(2).mean() > 0.999, name
        line = demo_onnx.segment(model, image, model(demo_onnx.prepare(model, image)), 0.5)[1]
        top = line.split(', ')[0].rsplit(' ', 1)
        assert got['classes'].split('\n')[:2] == [top[0], top[1].replace('%', ' %')]
    assert len({pixel for got in found for pixel in zip(*[iter(got['mask'])] * 4, strict=True)}) > 1
    assert sampled['mask'] == found[1]['mask']
    assert broken['state'] == 'failed'
    assert 'broken.png' in broken['status']


def test_classifier(here):
    make_checkpoint(here, CLASSIFICATION, PILLOW)
    names = write_images(here)[:4]
    export.main(['small.py', 'small.pth', 'model.onnx', '--output', 'logits', '--web', '.'])
    found = in_browser(here, f'return [{"".join(f"await choose({name!r}), " for name in names)}];')
    model = demo_onnx.Model('model.onnx')
    for name, got in zip(names, found, strict=True):
        image = demo_onnx.read(Path(name))
        x = demo_onnx.prepare(model, image)
        assert f'seen at {x.shape[1]} x {x.shape[0]}' in got['status']
        words = demo_onnx.classify(model, image, model(x), 0)[1].replace(',', '').replace('%', ' %').split()
        shown = got['classes'].split()
        assert [w for w in shown if w.isalpha()] == [w for w in words if w.isalpha()]
        scores = [[float(w) for w in line if '.' in w] for line in (shown, words)]
        # Shown with one digit.
        np.testing.assert_allclose(*scores, atol=0.11)


SIZES = [dict(scale=24), dict(scale=(80, 61)), dict(scale=64, keep_ratio=True)]
SIZES += [dict(scale_factor=1.7), dict(scale_factor=(0.5, 2.0))]
STEPS = [
    dict(type='Resize', interpolation=kind, backend=backend, **size)
    for backend, kind, size in product(('cv2', 'pillow'), ('nearest', 'bilinear', 'bicubic'), SIZES)
]
STEPS += [dict(type='ResizeEdge', scale=31, edge='short')]
STEPS += [dict(type='ResizeEdge', scale=90, edge='long', backend='pillow')]
STEPS += [dict(type='CenterCrop', crop_size=size) for size in (30, (60, 20))]


def test_steps_and_labels(here):
    make_checkpoint(here, SEGMENTATION, '')
    export.main(['small.py', 'small.pth', 'model.onnx', '--web', '.'])
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (37, 53, 3)).astype('uint8')
    maps = rng.standard_normal((3, 19, 27)).astype('float32')
    unknown = dict(type='Resize', scale=24, interpolation='area')
    script = f"""
    const image = {{ data: new Uint8ClampedArray({image.transpose(2, 0, 1).ravel().tolist()}),
                     channels: 3, height: 37, width: 53 }};
    const maps = {{ data: new Float32Array({maps.ravel().tolist()}), dims: [1, 3, 19, 27] }};
    const steps = {json.dumps(STEPS)}.map((step) => {{
      const {{ data, height, width }} = follow(step, image);
      return [Array.from(data), height, width];
    }});
    let refused = '';
    try {{ follow({json.dumps(unknown)}, image); }} catch (error) {{ refused = error.message; }}
    return [steps, Array.from(labels({{ logits: maps }}, image)), refused];
    """
    steps, labels, refused = in_browser(here, script)
    for step, (data, height, width) in zip(STEPS, steps, strict=True):
        wanted = demo_onnx.follow(json.loads(json.dumps(step)), image)
        got = np.reshape(data, (3, height, width)).transpose(1, 2, 0)
        np.testing.assert_array_equal(got, wanted, err_msg=str(step))
    wanted = demo_onnx.label_map(dict(logits=maps), (37, 53))
    np.testing.assert_array_equal(np.reshape(labels, (37, 53)), wanted)
    assert "interpolation='area'" in refused
