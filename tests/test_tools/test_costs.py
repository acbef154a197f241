"""What a model costs: counts agree with formulas by hand, and rows of benchmark.py say what was measured."""

import json
import math
import statistics

import pytest
import torch
from mmengine.config import Config

from mmvisiongru import measure
from mmvisiongru.models import VisionGRU
from mmvisiongru.zoo import build_model
from tools.analysis_tools import benchmark, get_flops
from tools.analysis_tools.flops import count, image_size

CLASSIFIER = 'configs/classification/visiongru-tiny_8xb128_in1k.py'
PICO, ATTO = 'mmvisiongru.VisionGRU:pico', 'mmpretrain.ConvNeXt:atto'
TTA = 'configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512_tta.py'
DEIT = 'mmpretrain.VisionTransformer:deit-small'


def on_meta(**options):
    with torch.device('meta'):
        return VisionGRU(**options)


def visiongru_macs(arch, size, paths=2, expand=2):
    """Stem, downsamplings, and a block's 3x3 depthwise convolution, projections, scan and MLP."""
    dims, depths = VisionGRU.arch_settings[arch].values()
    tokens = math.prod(-(-side // 2) for side in size)
    macs = tokens * 9 * 3 * dims[0] // 2
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        tokens, inner = math.prod(-(-side // (4 << i)) for side in size), paths * expand * dim
        macs += tokens * 9 * (dims[i - 1] if i else dim // 2) * dim
        macs += depth * tokens * (9 * dim + 3 * dim * inner + 2 * inner + 8 * dim * dim)
    return macs


@pytest.mark.parametrize(
    ('arch', 'options', 'arguments'),
    [('tiny', {}, {}),
     ('pico', dict(scan_paths=('row', 'column', 'row_reverse')), dict(paths=3)),
     ('pico', dict(expand_ratio=1), dict(expand=1))],
)  # fmt: skip
def test_visiongru_equals_hand_formula(arch, options, arguments):
    for size in ((224, 224), (1248, 1248), (95, 27), (1, 1)):
        assert count(on_meta(arch=arch, **options), size)['macs'] == visiongru_macs(arch, size, **arguments)


def test_figures_of_the_paper():
    model = build_model(CLASSIFIER).to('meta')
    small, large = (count(model, (side, side)) for side in (224, 1248))
    assert small['parameters'] == 30_216_952
    assert round(small['macs'] / 1e9, 1) == 4.9
    assert large['macs'] / 1e9 == pytest.approx(151.9, rel=0.01)


def test_attention_is_counted():
    """12 layers of 12 C^2 n + 2 n^2 C, of which counters of modules see the first term only."""
    channels, side, tokens = 384, 1248 // 16, (1248 // 16) ** 2 + 1
    patches = side**2 * 3 * 16 * 16 * channels
    found = count(build_model(DEIT).to('meta'), (1248, 1248))
    assert found['macs_attention'] == 12 * 2 * tokens**2 * channels
    assert found['macs'] == 12 * (12 * channels**2 * tokens + 2 * tokens**2 * channels) + patches


def test_real_devices_count_what_meta_counts():
    arch = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    assert count(VisionGRU(arch=arch), (400, 404)) == count(on_meta(arch=arch), (400, 404))


def test_sizes_reach_the_file(tmp_path, capsys):
    get_flops.main([PICO, '--shape', '64', '--shape', '64', '128', '--json', str(tmp_path / 'counts.json')])
    square, wide = json.loads((tmp_path / 'counts.json').read_text())['rows']
    assert (square['shape'], wide['shape']) == ([64, 64], [64, 128])
    assert wide['macs'] == 2 * square['macs'] > 0
    out = capsys.readouterr().out
    assert f'{square["parameters"] / 1e6:.2f} M parameters' in out
    # Small models are shown in millions.
    assert 'MMACs' in out


def test_wrapper_for_test_time_augmentation_counts_one_view(capsys):
    get_flops.main([TTA])
    out = ' '.join(capsys.readouterr().out.split())
    assert ('60.48 M parameters' in out, '512 x 512' in out) == (True, True)


def test_height_comes_before_width():
    for step, size in (
        (dict(type='Resize', scale=(50, 40)), (40, 50)),
        (dict(type='Resize', scale=50, keep_ratio=True), (50, 50)),
        (dict(type='mmcv.CenterCrop', crop_size=(50, 40)), (40, 50)),
        (dict(type='RandomCrop', crop_size=(40, 50)), (40, 50)),
    ):
        loader = dict(dataset=dict(pipeline=[step]))
        assert image_size(Config(dict(model={}, test_dataloader=loader))) == size, step


# ---- benchmark.py


def rows(tmp_path, *options):
    out = tmp_path / 'new/models.json'
    benchmark.main([PICO, ATTO, '--repeats', '2', '--device', 'cpu', '--json', str(out), *options])
    found = json.loads(out.read_text())
    assert found['machine']['threads'] == torch.get_num_threads()
    return found['rows']


def test_rows_say_what_was_measured(tmp_path):
    found = rows(tmp_path, '--sizes', '64', '32', '--mode', 'both', '--batch-size', '2')
    keys = [(row['size'], row['mode'], row['model']) for row in found]
    assert keys == [(s, mode, m) for s in (64, 32) for mode in ('inference', 'train') for m in (PICO, ATTO)]
    for row in found:
        assert row['images_per_s'] * row['latency_ms'] == pytest.approx(2000)
        assert row['model'] != PICO or row['time_ratio'] == 1


def test_dtypes_side_by_side_and_one_channel(tmp_path):
    dtypes = ['float32', 'bfloat16', 'bfloat16-weights']
    found = rows(tmp_path, '--sizes', '32', '--dtype', *dtypes, '--cfg-options', 'model.in_channels=1')
    assert [row['model'] for row in found] == [f'{name}, {d}' for name in (PICO, ATTO) for d in dtypes]


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'bfloat16-weights'])
def test_precision_is_that_of_the_computation(precision):
    model, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    for optimize in (True, False):
        got = benchmark.runnable(model, x, precision, 'inference', optimize)()
        assert got.dtype == (torch.float32 if precision == 'float32' else torch.bfloat16)
    # The model itself stays fit for training.
    assert (type(model), model.weight.dtype) == (torch.nn.Linear, torch.float32)


def test_runs_are_interleaved():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in 'ab'}
    times = measure.interleaved_times(functions, torch.device('cpu'), repeats=2)
    assert order == list('ababab')
    assert {name: len(seconds) for name, seconds in times.items()} == {'a': 2, 'b': 2}


def test_peak_memory_is_that_of_the_call():
    held, size, cpu = [], 96 << 20, torch.device('cpu')
    peaks = [measure.peak_memory(lambda: torch.ones(size // 4).sum(), cpu) for _ in range(2)]
    peaks.append(measure.peak_memory(lambda: held.append(torch.ones(size // 4)), cpu))
    assert statistics.median(peaks) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        (get_flops, ['nothing.py'], 'nothing.py does not exist'),
        (get_flops, [PICO, '--json', '/dev/null/x.json'], '/dev/null/x.json could not be written'),
        (benchmark, [PICO, '--json', '/dev/null/x.json'], 'folder /dev/null cannot be written'),
        (get_flops, ['resnet50_8xb32_in1'], 'resnet50_8xb32_in1k'),
        (get_flops, [PICO, '--shape', '0'], 'positive'),
        (get_flops, ['mmpretrain.SwinTransformer:tiny', '--shape', '64'], 'window'),
        (get_flops, [PICO, '--shape', '1', '2', '3'], 'one or two'),
        (benchmark, [PICO, '--mode', 'train', '--dtype', 'bfloat16-weights'], '--dtype'),
        (benchmark, ['mmvisiongru.VisionGRU:pikko'], 'pikko'),
        (benchmark, ['a/x.py', 'b/x.py'], 'x, x'),
        (benchmark, [PICO, '--sizes', '32', '--device', 'cpu', '--repeats', '0'], 'repeats'),
        (benchmark, [ATTO, '--cfg-options', 'modle.arch=tiny'], "'model'"),
        (benchmark, [ATTO, '--cfg-options', 'model.arch.x=1'], '--cfg-options'),
        (benchmark, [PICO, '--cfg-options', 'model.scan_pathes=row'], 'scan_pathes'),
    ],
)
def test_bad_input_is_one_line(tool, arguments, message, refused):
    assert message in refused(tool, *arguments)
