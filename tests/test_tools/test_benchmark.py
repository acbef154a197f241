"""tools/analysis_tools/benchmark.py: rows say what was measured, runs are interleaved."""

import json
import statistics

import pytest
import torch

from mmvisiongru import measure
from tools.analysis_tools import benchmark

PICO, ATTO = 'mmvisiongru.VisionGRU:pico', 'mmpretrain.ConvNeXt:atto'


def rows(tmp_path, *options):
    out = tmp_path / 'models.json'
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
    assert [row['model'] for row in found] == [
        f'{name}, {dtype}' for name in (PICO, ATTO) for dtype in dtypes
    ]


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'bfloat16-weights'])
def test_precision_is_that_of_the_computation(precision):
    model, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    for optimize in (True, False):
        got = benchmark.runnable(model, x, precision, 'inference', optimize)()
        assert got.dtype == (torch.float32 if precision == 'float32' else torch.bfloat16)
    # The model itself stays fit for training.
    assert (type(model), model.weight.dtype) == (torch.nn.Linear, torch.float32)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ([PICO, '--mode', 'train', '--dtype', 'bfloat16-weights'], '--dtype'),
        (['mmvisiongru.VisionGRU:pikko'], 'pikko'),
        ([PICO, '--cfg-options', 'model.scan_pathes=row'], 'scan_pathes'),
    ],
)
def test_bad_input_is_one_line(arguments, named, refused):
    assert named in refused(benchmark, *arguments, '--device', 'cpu')


def test_runs_are_interleaved():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in 'ab'}
    times = measure.interleaved_times(functions, torch.device('cpu'), repeats=2)
    assert order == list('ababab')
    assert {name: len(seconds) for name, seconds in times.items()} == {'a': 2, 'b': 2}


def test_peak_memory_is_that_of_the_call():
    held, size = [], 96 << 20
    peaks = [
        measure.peak_memory(lambda: torch.ones(size // 4).sum(), torch.device('cpu'), warm_up)
        for warm_up in (True, False)
    ]
    peaks.append(measure.peak_memory(lambda: held.append(torch.ones(size // 4)), torch.device('cpu'), False))
    assert statistics.median(peaks) == pytest.approx(size, rel=0.1)
