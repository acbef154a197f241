"""Benchmarks of the operators: wrong backends are not timed, competitors compute the same, rows are right."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks import scan as benchmark_scan
from benchmarks import wkv as benchmark_wkv
from mmvisiongru import measure

SMALL = ['--shapes', '2x37x12', '--repeats', '2', '--device', 'cpu']


def test_scan_rows(tmp_path, capsys):
    path = tmp_path / 'scan.json'
    benchmark_scan.main([*SMALL, '--names', 'cpu', 'torch', '--json', str(path)])
    rows = json.loads(path.read_text())['rows']
    assert 'torch' in {row['name'] for row in rows} <= {'cpu', 'torch'}
    for row in rows:
        assert row['shape'] == [2, 37, 12]
        assert all(row[key] < 2e-6 for key in ('h', 'd_gate', 'd_hidden'))
        # Gate, hidden and h of float32, 37 * 24 elements.
        assert row['forward_bytes_per_s'] * row['forward_ms'] / 1e3 == pytest.approx(3 * 4 * 37 * 24)
    assert '2x37x12' in capsys.readouterr().out
    benchmark_scan.print_table([dict(rows[0], shape=(2, 37, 12))], 'absent', 1e9)
    assert capsys.readouterr().out.split().count('-') == 5
    with pytest.raises(SystemExit, match='2'):
        benchmark_scan.main([*SMALL, '--names', 'troch'])


def test_wrong_backend_is_never_timed(monkeypatch):
    def off(gate, hidden):
        return hidden * (1 + 1e-5 * gate)

    monkeypatch.setattr(benchmark_scan, 'implementations', lambda *args: {'torch': off})
    monkeypatch.setattr(benchmark_scan.measure, 'interleaved_times', None)
    with pytest.raises(SystemExit, match=r'torch at \(2, 37, 12\)'):
        benchmark_scan.main(SMALL)


class Gpu:
    """A host and a GPU that runs its queue in order, with a clock."""

    def __init__(self, host, device):
        self.now, self.free, self.host, self.device = 0.0, 0.0, host, device

    def call(self):
        self.now += self.host
        self.free = max(self.free, self.now) + self.device

    def sleep(self, device):
        self.free = max(self.free, self.now) + 1

    def wait(self, device):
        self.now = max(self.now, self.free)

    def event(self, **kwargs):
        event = SimpleNamespace(at=0.0, record=lambda: setattr(event, 'at', max(self.free, self.now)))
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event


# Seconds per call of the host and of the GPU: the launch takes longer, or the kernels.
@pytest.mark.parametrize(('host', 'device'), [(14e-5, 2e-5), (3e-5, 5e-4)])
def test_device_and_host_are_timed_apart(monkeypatch, host, device):
    gpu = Gpu(host, device)
    monkeypatch.setattr(benchmark_scan, 'keep_busy', gpu.sleep)
    monkeypatch.setattr(torch.cuda, 'Event', gpu.event)
    monkeypatch.setattr(measure, 'synchronize', gpu.wait)
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: gpu.now)
    times, hosts = benchmark_scan.launched_times({'scan': gpu.call}, torch.device('cuda'), repeats=3)
    assert times['scan'] + hosts['scan'] == pytest.approx([device] * 3 + [host] * 3)
    # A clock around a call shows both.
    (both, *_) = measure.interleaved_times({'scan': gpu.call}, torch.device('cuda'), repeats=3)['scan']
    assert both == pytest.approx(host + device)


def test_peak_memory_hides_no_error_and_runs_where_it_cannot_measure(monkeypatch):
    with pytest.raises(AttributeError, match='nothing'):
        measure.peak_memory(lambda: torch.nothing, torch.device('cpu'))
    # A C library that is not glibc.
    monkeypatch.setattr(measure.ctypes, 'CDLL', lambda name: None)
    runs = []
    assert math.isnan(measure.peak_memory(lambda: runs.append(1), torch.device('cpu')))
    assert runs


def test_what_bi_wkv_is_compared_with_computes_the_same():
    torch.manual_seed(0)
    w, u = torch.randn(2, 6).double()
    k, v, cotangent = torch.randn(3, 2, 19, 6).double()
    found = benchmark_wkv.errors(benchmark_wkv.token_loop, (w, u, k, v), cotangent)
    assert all(error < 1e-12 for error in found.values())


def test_bi_wkv_rows(tmp_path, capsys):
    path = tmp_path / 'wkv.json'
    benchmark_wkv.main(['--shapes', '1x37x64', '--repeats', '2', '--device', 'cpu', '--json', str(path)])
    rows = {row['name']: row for row in json.loads(path.read_text())['rows']}
    assert {'torch', 'loop', 'attention'} <= rows.keys() <= {'cpu', 'torch', 'loop', 'attention'}
    assert all(rows['torch'][key] < 2e-6 for key in ('y', 'dw', 'du', 'dk', 'dv'))
    assert rows['torch']['tensors'] >= 3
    assert '1x37x64' in capsys.readouterr().out
