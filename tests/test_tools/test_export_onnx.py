"""tools/deployment: a file that computes what torch does, its metrics, and pictures where torch is not."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile, Resize
from mmengine.config import Config
from PIL import Image

from mmvisiongru import deployment
from mmvisiongru.deployment.verify import TOLERANCE, random_images
from mmvisiongru.deployment.wrapper import Deployed
from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU
from tests.harness import versions
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, TOOLS, make_checkpoint, save
from tools.deployment import benchmark_onnx, demo_onnx, export
from tools.deployment.describe import describe
from tools.deployment.runtimes import has_openvino, onnx_runtime, openvino
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
NOISE = np.random.default_rng(0)
NO_TORCH = """
import runpy, sys
for name in ('torch', 'mmengine', 'mmcv', 'cv2', 'mmvisiongru'):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def rows(text):
    """The table of metrics."""
    names = ('torch', 'ONNX Runtime', 'ONNX Runtime, int8', 'OpenVINO')
    lines = {line[:20].strip(): line[20:].split() for line in text.splitlines()}
    return {name: [float(x) for x in lines[name]] for name in names if name in lines}


def demo_lines(images, capsys, *args):
    """Lines of both demos on the same images; demo_onnx.py can import nothing but its own needs."""
    command = [sys.executable, '-c', NO_TORCH, TOOLS / 'deployment/demo_onnx.py', images, 'out/model.onnx']
    done = subprocess.run([*command, '--out', 'pictures', *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image_demo.main([images, 'small.py', 'small.pth', '--device', 'cpu', '--out-dir', 'expected', *args])
    outputs = (done.stdout, capsys.readouterr().out)
    return [[line for line in text.splitlines() if line.startswith(images)] for text in outputs]


def test_segmentor(here, capsys):
    make_checkpoint(here, SEGMENTATION, UPERNET)
    export.main(['small.py', 'small.pth', 'out/model.onnx', '--int8', '--eval'])
    out = capsys.readouterr().out
    assert 'of the labels differ' in out
    table = rows(out)
    in_8_bits = table.pop('ONNX Runtime, int8')
    assert table.keys() == {'torch', 'ONNX Runtime'} | ({'OpenVINO'} if has_openvino() else set())
    assert min(table['torch'][0], in_8_bits[0]) > 5
    for found in table.values():
        np.testing.assert_allclose(found, table['torch'], atol=0.05)

    protos = [onnx.load(f'out/{name}.onnx') for name in ('model', 'model.int8')]
    meta, meta8 = ({p.key: p.value for p in proto.metadata_props} for proto in protos)
    # The file computes mmseg's own head as it is. In 8 bits, a result depends on the batch.
    (note,), (_, note8) = (json.loads(each['notes']) for each in (meta, meta8))
    assert ('mmvisiongru.UPerHead' in note, 'batch' in note8) == (True, True)
    assert all(f'note: {line}' in out for line in (note, note8))
    assert json.loads(meta['classes']) == ['wall', 'building', 'sky']
    assert (meta['task'], json.loads(meta['size']), meta['config']) == ('segmentation', None, 'small.py')
    assert sorted(os.listdir('out')) == ['model.int8.onnx', 'model.onnx']

    found, expected = demo_lines('data/images/validation', capsys, '--opacity', '1')
    assert (found, len(found)) == (expected, 3)
    for i in range(3):
        picture, wanted = (np.asarray(Image.open(f'{folder}/{i}.png')) for folder in ('pictures', 'expected'))
        # Pixels between two classes differ, and with them places of names.
        assert (picture == wanted).all(2).mean() > 0.9


def test_classifier(here, capsys):
    make_checkpoint(here, CLASSIFICATION, RESIZED)
    outputs = ['--output', 'scores', 'labels']
    export.main(['small.py', 'small.pth', 'out/model.onnx', *outputs, '--int8', '--eval'])
    out = capsys.readouterr().out
    assert 'scores have an RMS error of ' in out
    table = rows(out)
    assert table['ONNX Runtime'] == table['torch'] != []
    save('data/val/a/big.png', NOISE.integers(0, 256, (90, 70, 3)))
    score = re.compile(r'[0-9.]+(?=%)')
    lines = list(zip(*demo_lines('data/val/a', capsys), strict=True))
    assert len(lines) == len(os.listdir('pictures')) == 4
    for pair in lines:
        assert len({score.sub('', line) for line in pair}) == 1
        found, wanted = (list(map(float, score.findall(line))) for line in pair)
        # The bilinear resizing of cv2 rounds to other eighths of a grey level.
        assert found == pytest.approx(wanted, abs=0.2)


@pytest.fixture
def fails(here, refused):
    """Calls export.py for a classifier; it writes nothing."""
    make_checkpoint(here, CLASSIFICATION)

    def call(*args, named):
        line = refused(export, 'small.py', 'small.pth', 'model.onnx', *args)
        assert [part for part in named if part not in line] == []
        assert not any('model' in name for name in os.listdir())

    return call


def test_fixed_size_and_a_file_that_differs(fails, refused, monkeypatch, capsys):
    options = ['small.py', 'small.pth', 'fixed.onnx', '--output', 'logits', '--eval', '--shape']
    export.main([*options, '32', '32'])
    table = rows(capsys.readouterr().out)
    assert table['ONNX Runtime'] == table['torch'] != []
    assert '1 x 3 x 37 x 50, got 1 x 3 x 32 x 32' in refused(export, *options, '37', '50')
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
    fails('--shape', '37', '50', '--output', 'logits', named=['logits of the file differ from torch by '])


def test_layer_that_cannot_be_exported(fails, monkeypatch):
    monkeypatch.setattr('mmvisiongru.deployment.export.translation_table', dict)
    fails(named=['cannot be exported', 'mmvisiongru.scan_lines'])


def test_input_that_cannot_be_used(fails, monkeypatch):
    fails('--output', 'boxes', named=['boxes', 'labels', 'logits', 'scores'])
    fails('--output', 'labels', 'labels', named=['got labels, labels'])
    fails('--shape', '-1', '50', named=['--shape', '-1'])
    Path('index.html').write_text('x')
    fails('--web', '.', named=['index.html exists'])
    fails('--cfg-options', 'model.head.num_classes=5', named=['small.pth', 'head.fc.weight', '(2, 16)'])
    found = {'torch': '2.6.0', 'onnx': '1.20', 'onnxruntime': '1.23'}
    monkeypatch.setattr(deployment.metadata, 'version', versions(found))
    fails(named=['torch>=2.7 (found 2.6.0)', 'onnxscript>=0.5.4', 'pip install'])
    with pytest.raises(InputError, match='torch>=2'):
        deployment.export.export(None, ())


def test_what_a_file_leaves_out_is_noted(here):
    more = """
model['test_cfg'] = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
model['data_preprocessor']['test_cfg'] = dict(size=(48, 64))
pipeline.insert(1, dict(type='AdjustGamma'))
"""
    model = make_checkpoint(here, SEGMENTATION, more)
    _, notes = describe(Config.fromfile('small.py'), {}, Deployed(model, True, ['labels']), None)
    for note, setting in zip(notes, ('AdjustGamma', 'slide', '(48, 64)'), strict=True):
        assert setting in note


def test_models_that_are_not_exported(here):
    grey = "model['backbone']['in_channels'] = 1\ndata_preprocessor.update(mean=[127.0], std=[60.0])\n"
    several = "model['head']['type'] = 'MultiLabelLinearClsHead'\n"
    for more, message in ((grey, 'in_channels is 1'), (several, 'MultiLabelLinearClsHead')):
        with pytest.raises(InputError, match=message):
            Deployed(make_checkpoint(here, CLASSIFICATION, more), False, ['scores'])


@pytest.mark.parametrize('name', ['grey.png', 'grey.tif', 'colour.png'])
def test_demo_reads_16_bits_as_training_does(name, here):
    shape = (40, 50) if 'grey' in name else (40, 50, 3)
    mmcv.imwrite(NOISE.integers(0, 1 << 16, shape).astype('uint16'), name)
    expected = LoadImageFromFile()(dict(img_path=name))['img'][..., ::-1]
    np.testing.assert_array_equal(demo_onnx.read(Path(name)), expected)


SIZES = [
    dict(scale=24), dict(scale=(80, 61)), dict(scale=64, keep_ratio=True), dict(scale_factor=1.7),
    dict(scale_factor=(0.5, 2.0)), dict(scale_factor=1.5, keep_ratio=True),
]  # fmt: skip


@pytest.mark.parametrize(('kind', 'error'), [('nearest', 0), ('bilinear', 1), ('bicubic', 1), ('area', None)])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_demo_resizes_as_the_test_pipeline_does(kind, error, size):
    """The linear and cubic weights of cv2 are fractions of 2048."""
    image = NOISE.integers(0, 256, (37, 53, 3)).astype('uint8')
    how = dict(size, interpolation=kind)
    step = json.loads(json.dumps(dict(how, type='Resize')))
    if error is None:
        with pytest.raises(demo_onnx.InputError, match="interpolation='area'"):
            demo_onnx.follow(step, image)
        return
    expected = Resize(**how)(dict(img=image))['img']
    found = demo_onnx.follow(step, image)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= error


def test_demo_on_input_that_cannot_be_used(workplace, refused):
    Path('broken.onnx').write_text('x')
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float x) => (float y) { y = Abs(x) }'
    onnx.save(other := onnx.parser.parse_model(text), 'other.onnx')
    meta = dict(classes='["a"]', palette='[]', task='classification', size='null', resize='[]')
    onnx.helper.set_model_props(other, meta)
    onnx.save(other, 'right.onnx')
    for images, model, out, named in (
        ('inet/val', 'none.onnx', 'out', 'none.onnx does not exist'),
        ('inet/val', 'broken.onnx', 'out', 'broken.onnx is not a readable ONNX file'),
        ('inet/val', 'other.onnx', 'out', 'tools/deployment/export.py'),
        ('inet/val', 'right.onnx', 'inet/val/out', '--out inet/val/out is among the images'),
        ('no.png', 'right.onnx', 'out', 'image no.png does not exist'),
        ('broken.onnx', 'right.onnx', 'out', 'broken.onnx is not an image'),
    ):
        assert named in refused(demo_onnx, images, model, '--out', out)


# ---- benchmark_onnx.py


@pytest.fixture
def one_block(monkeypatch):
    """Let every name stand for a model of one block."""
    arch = dict(embed_dims=[16], depths=[1])
    monkeypatch.setattr(benchmark_onnx, 'build_model', lambda _: VisionGRU(arch, out_indices=(0,)))


def test_benchmark_says_how_far_values_are_from_torch_and_what_cannot_run(one_block, monkeypatch):
    runners = ('torch float32', 'ONNX Runtime float32', 'ONNX Runtime int8', 'ONNX Runtime bfloat16')
    monkeypatch.setattr(benchmark_onnx, 'RUNNERS', runners)
    monkeypatch.setattr(benchmark_onnx, 'in_new_process', lambda *_: math.nan)
    right = benchmark_onnx.start

    def start(runner, *rest):
        if runner == runners[3]:
            raise RuntimeError('no kernel\nfor it')
        return right(runner, *rest)

    monkeypatch.setattr(benchmark_onnx, 'start', start)
    rows, notes = benchmark_onnx.compare('small', [(32, 48)], repeats=2)
    assert (notes, rows[0]['time_ratio']) == ([f'{runners[3]}: no kernel for it'], 1)
    assert [row['runner'] for row in rows] == list(runners[:3])
    errors = [row['rms_error'] for row in rows]
    # 8 bits cost something, and far from everything.
    assert errors[0] == 0 < errors[1] < 2e-6 < 1e-4 < errors[2] < 3e-2
    assert all(row['latency_ms'] >= row['fastest_ms'] > 0 for row in rows)


def test_memory_is_that_of_the_image(one_block):
    small, large = (benchmark_onnx.memory_of(('torch float32', '', ''), (n, n), 1) for n in (64, 512))
    # One map of the stem alone: 256 x 256 x 8 of float32.
    assert large > max(small, 256 * 256 * 8 * 4)
