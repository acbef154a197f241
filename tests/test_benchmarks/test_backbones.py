"""Tables I and II and figure 1: rows are counted, measured, or quoted from a named source."""

import csv
import json

import pytest

from benchmarks import backbones as compare_backbones
from benchmarks import resolution
from mmvisiongru.zoo import build_model
from tools.analysis_tools.flops import count

PICO, ATTO = 'mmvisiongru.VisionGRU:pico', 'mmpretrain.ConvNeXt:atto'


def a_nanosecond_each_parameter(runs, device, repeats):
    return {name: [1e-9 * sum(p.numel() for p in run.args[0].parameters())] for name, run in runs.items()}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(compare_backbones, 'MODELS', dict(classification={'first': PICO, 'second': ATTO}))
    monkeypatch.setattr(compare_backbones, 'image_size', lambda cfg: (64, 64))
    monkeypatch.setattr(compare_backbones, 'quoted_accuracy', lambda key, task: (12.34, 'nowhere'))


def test_rows_are_counted_measured_or_quoted(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_backbones.measure, 'interleaved_times', a_nanosecond_each_parameter)
    compare_backbones.main(['--out', str(tmp_path / 'page'), '--repeats', '2', '--device', 'cpu'])
    text, found = (tmp_path / 'page.md').read_text(), json.loads((tmp_path / 'page.json').read_text())
    rows = {row['model']: row for row in found['rows']}
    second = rows['second']
    expected = count(build_model(ATTO).to('meta'), (64, 64))
    assert (second['parameters'], second['macs']) == (expected['parameters'], expected['macs'])
    assert second['latency_ms'] == pytest.approx(1e-6 * second['parameters'])
    assert rows['first']['time_ratio'] == 1
    assert second['time_ratio'] == pytest.approx(second['parameters'] / rows['first']['parameters'])
    assert '| 12.34 | nowhere |' in text
    assert '| Vim-S | 224x224 | 26.0 |  | not available |  |  | 80.5 | README of hustvl/Vim |' in text


def test_resolution_draws_its_table(tmp_path, monkeypatch):
    names = ('VisionGRU-tiny', 'Swin-T')
    monkeypatch.setattr(resolution, 'COMPARED', dict.fromkeys(names, PICO))
    monkeypatch.setattr(resolution, 'OVER_SIZES', names)
    out = tmp_path / 'new' / 'v1.2'
    options = '--sizes 96 64 --repeats 1 --batch-size 2 --device cpu'
    resolution.main(['--out', str(out), *options.split()])
    machine, *lines = (tmp_path / 'new' / 'v1.2.csv').read_text().splitlines()
    assert (machine.startswith('# device '), 'batch 2' in machine) == (True, True)
    rows = list(csv.DictReader(lines))
    assert [(row['size'], row['model']) for row in rows] == [(s, n) for s in ('64', '96') for n in names]
    expected = count(build_model(PICO, device='meta'), (96, 96))
    assert int(rows[-1]['parameters']) == expected['parameters']
    assert float(rows[-1]['gmacs']) == round(expected['macs'] / 1e9, 2)
    assert all(float(row['latency_ms']) > 0 for row in rows)
    assert (tmp_path / 'new' / 'v1.2.png').stat().st_size > 1000
