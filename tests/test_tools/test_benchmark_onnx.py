"""benchmark_onnx.py: every row says how far its values are from torch's, and what cannot run is named."""

import math

import pytest

from mmvisiongru.models import VisionGRU
from tools.deployment import benchmark_onnx

for name in ('onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(name, reason='ONNX export needs requirements/deploy.txt')


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Let every name stand for a model of one block."""
    arch = dict(embed_dims=[16], depths=[1])
    monkeypatch.setattr(benchmark_onnx, 'build_model', lambda _: VisionGRU(arch, out_indices=(0,)))


def test_rows_and_what_cannot_run(monkeypatch):
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
    assert notes == [f'{runners[3]}: no kernel for it']
    assert [row['runner'] for row in rows] == list(runners[:3])
    errors = [row['rms_error'] for row in rows]
    # 8 bits cost something, and far from everything.
    assert errors[0] == 0 < errors[1] < 2e-6 < 1e-4 < errors[2] < 3e-2
    assert rows[0]['time_ratio'] == 1
    assert all(row['latency_ms'] >= row['fastest_ms'] > 0 for row in rows)


def test_memory_is_that_of_the_image():
    small, large = (benchmark_onnx.memory_of(('torch float32', '', ''), (n, n), 1) for n in (64, 512))
    # One map of the stem alone: 256 x 256 x 8 of float32.
    assert large > max(small, 256 * 256 * 8 * 4)
