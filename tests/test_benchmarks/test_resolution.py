"""Figure 1: the table holds a row a size and model, counted and measured, and the picture is drawn."""

import csv

import torch

from benchmarks import resolution as plot_resolution
from mmvisiongru.zoo import build_model
from tools.analysis_tools.flops import count

NAMES = ('VisionGRU-tiny', 'Swin-T')
PICO = 'mmvisiongru.VisionGRU:pico'


def test_table_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(plot_resolution, 'COMPARED', dict.fromkeys(NAMES, PICO))
    monkeypatch.setattr(plot_resolution, 'OVER_SIZES', NAMES)
    out = tmp_path / 'new' / 'v1.2'
    plot_resolution.main(
        ['--out', str(out), '--sizes', '96', '64', '--repeats', '1', '--batch-size', '2', '--device', 'cpu']
    )
    machine, *lines = (tmp_path / 'new' / 'v1.2.csv').read_text().splitlines()
    assert machine.startswith('# device ')
    assert 'batch 2' in machine
    rows = list(csv.DictReader(lines))
    assert [(row['size'], row['model']) for row in rows] == [(s, n) for s in ('64', '96') for n in NAMES]
    expected = count(build_model(PICO, device='meta'), (96, 96))
    assert int(rows[-1]['parameters']) == expected['parameters']
    assert float(rows[-1]['gmacs']) == round(expected['macs'] / 1e9, 2)
    assert all(float(row['latency_ms']) > 0 for row in rows)
    assert (tmp_path / 'new' / 'v1.2.png').stat().st_size > 1000


def test_model_leaves_the_picture_where_memory_is_not_enough(monkeypatch, capsys):
    def peak_memory(run, device):
        run()
        if run.args[1].shape[-1] == 96 and run.args[0] is models['Swin-T']:
            raise torch.OutOfMemoryError
        return 1.0

    models = {name: build_model(PICO) for name in NAMES}
    monkeypatch.setattr(plot_resolution, 'COMPARED', dict.fromkeys(NAMES, PICO))
    monkeypatch.setattr(plot_resolution.measure, 'peak_memory', peak_memory)
    rows = plot_resolution.measure_sizes(models, [64, 96], 1, torch.device('cpu'), 1)
    found = [(row['size'], row['model']) for row in rows]
    assert found == [(64, 'VisionGRU-tiny'), (64, 'Swin-T'), (96, 'VisionGRU-tiny')]
    assert 'Swin-T at 96: not enough memory' in capsys.readouterr().out
