"""Figure 1: the table holds a row a size and model, counted and measured, and the picture is drawn."""

import csv

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
