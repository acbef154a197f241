"""tools/deployment: a file that computes what torch does, its metrics, and pictures where torch is not."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile, Resize
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from mmvisiongru import deployment
from mmvisiongru.deployment.describe import describe
from mmvisiongru.deployment.runtimes import has_openvino, onnx_runtime, openvino
from mmvisiongru.deployment.verify import TOLERANCE, random_images
from mmvisiongru.deployment.wrapper import Deployed
from mmvisiongru.errors import InputError
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, TOOLS, make_checkpoint
from tools.deployment import demo_onnx, export
from tools.visualization import image_demo

onnx, *_ = (
    pytest.importorskip(name, reason='ONNX export needs requirements/deploy.txt')
    for name in ('onnx', 'onnxscript', 'onnxruntime')
)

# UperNet pools to four sizes; SyncBN is in the base. Trained on BGR, as nothing converts it.
UPERNET = """
model.update(
    backbone=dict(
        type='mmvisiongru.VisionGRU', arch=dict(embed_dims=[8, 16, 32, 64], depths=[1, 1, 1, 1]),
        scan_paths=('row', 'column_reverse'), pos_embed='absolute', out_norm_cfg=dict(type='LN'),
    ),
    decode_head=dict(
        type='UPerHead', in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3], channels=8, num_classes=3,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
)
model['data_preprocessor']['test_cfg'] = dict(size_divisor=7)
"""
RESIZED = """
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=48), dict(type='CenterCrop', crop_size=40),
    dict(type='PackInputs'),
]
val_dataloader['dataset']['pipeline'] = pipeline
data_preprocessor['to_rgb'] = True
model['backbone'].update(candidate='linear', dwconv_kernel_size=None)
"""
NO_TORCH = """
import runpy, sys
for name in ('torch', 'mmengine', 'mmcv', 'cv2', 'mmvisiongru'):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def demo(*args):
    """Run demo_onnx.py where nothing but its own needs can be imported."""
    command = [sys.executable, '-c', NO_TORCH, str(TOOLS / 'deployment/demo_onnx.py'), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def rows(text):
    """The table of metrics."""
    names = ('torch', 'ONNX Runtime', 'ONNX Runtime, int8', 'OpenVINO')
    lines = {line[:20].strip(): line[20:].split() for line in text.splitlines()}
    return {name: [float(x) for x in lines[name]] for name in names if name in lines}


def test_segmentor(here, capsys):
    make_checkpoint(here, SEGMENTATION, UPERNET)
    export.main(['small.py', 'small.pth', 'out/model.onnx', '--int8', '--eval'])
    out = capsys.readouterr().out
    table = rows(out)
    assert set(table) == {'torch', 'ONNX Runtime', 'ONNX Runtime, int8'} | (
        {'OpenVINO'} if has_openvino() else set()
    )
    for name in set(table) - {'ONNX Runtime, int8'}:
        np.testing.assert_allclose(table[name], table['torch'], atol=0.05)
    assert table['torch'][0] > 5
    assert 'of the labels differ' in out

    meta, meta8 = (
        {p.key: p.value for p in onnx.load(f'out/model{name}.onnx').metadata_props} for name in ('', '.int8')
    )
    # The file computes mmseg's own head as it is.
    (note,) = json.loads(meta['notes'])
    assert 'mmvisiongru.UPerHead' in note
    # What a result depends on in 8 bits.
    (_, note8) = json.loads(meta8['notes'])
    assert 'batch' in note8
    for line in (note, note8):
        assert f'note: {line}' in out
    assert json.loads(meta['classes']) == ['wall', 'building', 'sky']
    assert (meta['task'], json.loads(meta['size']), meta['config']) == ('segmentation', None, 'small.py')
    assert sorted(os.listdir('out')) == ['model.int8.onnx', 'model.onnx']

    images = here / 'data/images/validation'
    done = demo(images, 'out/model.onnx', '--out', 'pictures', '--opacity', '1')
    assert done.returncode == 0, done.stderr
    image_demo.main(
        [str(images), 'small.py', 'small.pth', '--device', 'cpu', '--out-dir', 'expected', '--opacity', '1']
    )
    expected = capsys.readouterr().out
    for line in done.stdout.splitlines()[:-1]:
        assert line in expected
    for i in range(3):
        found = np.asarray(Image.open(f'pictures/{i}.jpg')).astype(int)
        # image_demo enlarges small images.
        wanted = np.asarray(Image.open(f'expected/{i}.png').resize(found.shape[1::-1], 0)).astype(int)
        plain = (wanted[:, :, None] == json.loads(meta['palette'])).all(3).any(2)
        assert plain.mean() > 0.8
        # But for JPEG and the letters.
        assert (np.abs(found - wanted).max(2) < 40)[plain].mean() > 0.8


def test_classifier(here, capsys):
    make_checkpoint(here, CLASSIFICATION, RESIZED)
    export.main(['small.py', 'small.pth', 'model.onnx', '--output', 'scores', 'labels', '--int8', '--eval'])
    out = capsys.readouterr().out
    assert 'scores have an RMS error of ' in out
    table = rows(out)
    assert table['ONNX Runtime'] == table['torch'] != []
    images = here / 'data/val/a'
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70, 3)).astype('uint8')).save(
        images / 'big.png'
    )
    done = demo(images, 'model.onnx', '--out', 'pictures')
    assert done.returncode == 0, done.stderr
    image_demo.main([str(images), 'small.py', 'small.pth', '--device', 'cpu', '--out-dir', 'expected'])
    expected = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(images))]
    assert len(expected) == 4
    score = re.compile(r'[0-9.]+(?=%)')
    for found, wanted in zip(done.stdout.splitlines(), expected, strict=False):
        assert score.sub('', found) == score.sub('', wanted)
        for one, other in zip(score.findall(found), score.findall(wanted), strict=True):
            # The bilinear resizing of cv2 rounds to other eighths of a grey level.
            assert abs(float(one) - float(other)) < 0.2
    assert len(os.listdir('pictures')) == 4


@pytest.fixture
def digits(here):
    """The config and checkpoint of a classifier."""
    make_checkpoint(here, CLASSIFICATION, '')


def fails(capsys, *args):
    """The line that export.py ends with; nothing must have been written."""
    with pytest.raises(SystemExit, match='2'):
        export.main(['small.py', 'small.pth', 'model.onnx', *args])
    assert not any('model' in name for name in os.listdir())
    return capsys.readouterr().err.splitlines()[-1]


def test_fixed_size_and_a_file_that_differs(digits, capsys, monkeypatch):
    export.main(['small.py', 'small.pth', 'fixed.onnx', '--shape', '37', '50', '--output', 'logits'])
    session = onnx_runtime('fixed.onnx')
    assert session(np.zeros((1, 3, 37, 50), np.float32))['logits'].shape == (1, 2)
    if has_openvino():
        images = np.random.default_rng(0).uniform(0, 255, (1, 3, 37, 50)).astype('float32')
        found, wanted = openvino('fixed.onnx')(images)['logits'], session(images)['logits']
        np.testing.assert_allclose(found, wanted, rtol=1e-4)

    proto = onnx.load('fixed.onnx')
    bias = next(x for x in proto.graph.initializer if x.name.endswith('head.fc.bias'))
    largest = session(random_images((1, 3, 37, 50)).numpy())['logits'].max()
    wrong = onnx.numpy_helper.to_array(bias) + 5 * TOLERANCE * abs(largest)
    bias.CopyFrom(onnx.numpy_helper.from_array(wrong.astype('float32'), bias.name))
    monkeypatch.setattr('mmvisiongru.deployment.export.export', lambda *_: proto)
    error = fails(capsys, '--shape', '37', '50', '--output', 'logits')
    assert error.startswith('error: logits of the file differ from torch by ')


def test_layer_that_cannot_be_exported(digits, capsys, monkeypatch):
    monkeypatch.setattr('mmvisiongru.deployment.export.translation_table', dict)
    error = fails(capsys)
    assert error.startswith('error: the model cannot be exported: ')
    assert 'mmvisiongru.scan_lines' in error


def test_input_that_cannot_be_used(digits, capsys, monkeypatch):
    assert (
        fails(capsys, '--output', 'boxes')
        == "error: unknown output 'boxes'; there are labels, logits, scores"
    )
    error = fails(capsys, '--cfg-options', 'model.head.num_classes=5')
    assert error.startswith(
        'error: checkpoint small.pth does not fit the model: shape of head.fc.weight: (2, 16)'
    )
    versions = {'torch': '2.6.0', 'onnx': '1.20', 'onnxruntime': '1.23'}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(deployment.metadata, 'version', version)
    error = fails(capsys)
    assert 'needs torch>=2.7 (found 2.6.0), onnxscript>=0.5.4 (found none); pip install' in error


def test_what_a_file_leaves_out_is_noted(here):
    make_checkpoint(here, SEGMENTATION, '')
    cfg = Config.fromfile('small.py')
    cfg.model.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    cfg.model.data_preprocessor.test_cfg = dict(size=(48, 64))
    cfg.test_dataloader.dataset.pipeline.insert(1, ConfigDict(type='AdjustGamma'))
    init_default_scope('mmseg')
    _, notes = describe(cfg, {}, Deployed(MODELS.build(cfg.model), True, ['labels']), None)
    for note, setting in zip(notes, ('AdjustGamma', 'slide', '(48, 64)'), strict=True):
        assert setting in note


def test_grey_models_are_refused(digits):
    cfg = Config.fromfile('small.py')
    cfg.model.backbone.in_channels = 1
    cfg.data_preprocessor.update(mean=[127.0], std=[60.0], to_rgb=False)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    with pytest.raises(InputError, match='in_channels is 1'):
        Deployed(model, False, ['scores'])


NOISE = np.random.default_rng(0)


@pytest.mark.parametrize('name', ['grey.png', 'grey.tif', 'colour.png'])
def test_demo_reads_16_bits_as_training_does(name, here):
    shape = (40, 50) if 'grey' in name else (40, 50, 3)
    mmcv.imwrite(NOISE.integers(0, 1 << 16, shape).astype('uint16'), name)
    expected = LoadImageFromFile()(dict(img_path=name))['img'][..., ::-1]
    np.testing.assert_array_equal(demo_onnx.read(Path(name)), expected)


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic', 'area'])
@pytest.mark.parametrize(
    'size',
    [
        dict(scale=24),
        dict(scale=(80, 61)),
        dict(scale=64, keep_ratio=True),
        dict(scale_factor=1.7),
        dict(scale_factor=(0.5, 2.0)),
        dict(scale_factor=1.5, keep_ratio=True),
    ],
    ids=str,
)
def test_demo_resizes_as_the_test_pipeline_does(interpolation, size):
    image = NOISE.integers(0, 256, (37, 53, 3)).astype('uint8')
    step = json.loads(json.dumps(dict(type='Resize', interpolation=interpolation, **size)))
    if interpolation == 'area':
        with pytest.raises(demo_onnx.InputError, match="interpolation='area'"):
            demo_onnx.follow(step, image)
        return
    expected = Resize(interpolation=interpolation, **size)(dict(img=image))['img']
    found = demo_onnx.follow(step, image)
    assert found.shape == expected.shape
    # The linear and cubic weights of cv2 are fractions of 2048.
    assert np.abs(found.astype(int) - expected).max() <= (interpolation != 'nearest')


def test_demo_on_input_that_cannot_be_used(here):
    Image.new('RGB', (8, 8)).save('a.png')
    (here / 'broken.onnx').write_text('x')
    other = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float x) => (float y) { y = Abs(x) }'
    )
    onnx.save(other, 'other.onnx')
    for model, message in (
        ('none.onnx', 'model none.onnx does not exist'),
        ('broken.onnx', 'broken.onnx is not a readable ONNX file ('),
        ('other.onnx', 'other.onnx was not written by tools/deployment/export.py'),
    ):
        done = demo('a.png', model)
        assert (done.returncode, done.stderr.count('\n')) == (2, 1)
        assert done.stderr.startswith(f'error: {message}')
