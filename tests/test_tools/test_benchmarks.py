"""The benchmarks: nothing wrong is timed, competitors get the same recurrence, rows say what was measured."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import scan as benchmark_scan
from benchmarks import wkv as benchmark_wkv
from mmvisiongru.zoo import build_model
from tools.analysis_tools import benchmark

SMALL = ['--shapes', '2x37x12', '--repeats', '2', '--device', 'cpu']
PICO = 'mmvisiongru.VisionGRU:pico'


def recurrence(keep, new, dim):
    """h_t = keep_t h_{t-1} + new_t along ``dim``, a step at a time."""
    h, out = torch.zeros_like(new.select(dim, 0)), []
    for a, b in zip(keep.unbind(dim), new.unbind(dim), strict=True):
        out.append(h := a * h + b)
    return torch.stack(out, dim)


def fake_hgrn(x, g):
    return recurrence(g.exp(), x, 1), None


def fake_warp_scan(gates, tokens):
    length = gates.size(-1)
    assert length in [1 << n for n in range(5, 17)]
    assert all(x.is_contiguous() for x in (gates, tokens))
    return recurrence(gates, tokens, 2)


@pytest.fixture
def competitors(monkeypatch):
    """Packages with the interface of the real ones, which need a GPU."""
    monkeypatch.setitem(sys.modules, 'fla.ops.hgrn', SimpleNamespace(fused_recurrent_hgrn=fake_hgrn))
    monkeypatch.setitem(sys.modules, 'accelerated_scan.warp', SimpleNamespace(scan=fake_warp_scan))


@pytest.mark.parametrize('length', [1, 37, 64])
@pytest.mark.parametrize('name', ['hgrn', 'accelerated'])
def test_competitors_compute_the_same_scan(competitors, name, length):
    torch.manual_seed(0)
    tensors = [torch.randn(2, length, 5) for _ in range(3)]
    assert max(benchmark_scan.errors(getattr(benchmark_scan, name), *tensors).values()) < 1e-6


def test_scan_rows(tmp_path, capsys):
    path = tmp_path / 'scan.json'
    benchmark_scan.main([*SMALL, '--names', 'cpu', 'torch', '--json', str(path)])
    rows = json.loads(path.read_text())['rows']
    assert 'torch' in {row['name'] for row in rows} <= {'cpu', 'torch'}
    for row in rows:
        assert row['shape'] == [2, 37, 12]
        assert max(row[key] for key in ('h', 'd_gate', 'd_hidden')) < 2e-6
        # Gate, hidden and h of float32, 37 * 24 elements.
        assert row['forward_bytes_per_s'] * row['forward_ms'] / 1e3 == pytest.approx(3 * 4 * 37 * 24)
    assert '2x37x12' in capsys.readouterr().out


def test_peak_memory_of_nothing_has_no_ratio(capsys):
    keys = ('ms', 'bytes_per_s', 'host_ms')
    times = {f'{kind}_{key}': 1.0 for kind in ('forward', 'train') for key in keys}
    errors = dict.fromkeys(('h', 'd_gate', 'd_hidden'), 0.0)
    rows = [
        dict(name=name, shape=(1, 2, 3), train_peak_mb=memory, **times, **errors)
        for name, memory in (('torch', 0.0), ('cpu', 5.0))
    ]
    for baseline, ratios in (('torch', ['-', '-']), ('cpu', ['0.00', '1.00'])):
        benchmark_scan.print_table(rows, baseline, bandwidth=1.0)
        lines = [line.strip('│ \n').split() for line in capsys.readouterr().out.splitlines()]
        assert [line[-1] for line in lines if line[0] == '1x2x3'] == ratios


def test_wrong_backend_is_never_timed(monkeypatch):
    def off(gate, hidden):
        return hidden * (1 + 1e-5 * gate)

    monkeypatch.setattr(benchmark_scan, 'implementations', lambda *args: {'torch': off})
    monkeypatch.setattr(benchmark_scan.measure, 'interleaved_times', None)
    with pytest.raises(SystemExit, match=r'error: torch at \(2, 37, 12\) is outside of its tolerance'):
        benchmark_scan.main(SMALL)


@pytest.mark.parametrize(
    ('error', 'message'),
    [(RuntimeError('seqlen must be a power of 2\nand more'), 'seqlen must be a power of 2'),
     (AssertionError(), 'AssertionError')],
)  # fmt: skip
def test_competitor_that_fails_is_left_out(monkeypatch, tmp_path, capsys, error, message):
    def fails(gate, hidden):
        raise error

    ours = benchmark_scan.implementations(torch.device('cpu'), torch.float32, ['torch'])
    monkeypatch.setattr(benchmark_scan, 'implementations', lambda *args: ours | {'other': fails})
    benchmark_scan.main([*SMALL, '--json', str(tmp_path / 'scan.json')])
    rows = json.loads((tmp_path / 'scan.json').read_text())['rows']
    assert [row['name'] for row in rows] == ['torch']
    assert f'other left out at (2, 37, 12): {message}\n' in capsys.readouterr().err


def test_model_rows_and_picture(tmp_path, capsys):
    out, picture = tmp_path / 'models.json', tmp_path / 'models.png'
    models = [PICO, 'mmpretrain.ConvNeXt:atto']
    options = [
        '--sizes',
        '64',
        '32',
        '--mode',
        'both',
        '--batch-size',
        '2',
        '--repeats',
        '2',
        '--device',
        'cpu',
    ]
    benchmark.main([*models, *options, '--json', str(out), '--plot', str(picture)])
    found = json.loads(out.read_text())
    assert found['machine']['threads'] == torch.get_num_threads()
    keys = [(row['size'], row['mode'], row['model']) for row in found['rows']]
    assert keys == [(s, mode, m) for s in (64, 32) for mode in ('inference', 'train') for m in models]
    for row in found['rows']:
        assert row['fastest_ms'] <= row['latency_ms']
        assert row['images_per_s'] * row['latency_ms'] == pytest.approx(2000)
        assert row['model'] != PICO or row['time_ratio'] == 1
    assert 'first / this' in capsys.readouterr().out
    with Image.open(picture) as image:
        assert len(image.convert('L').getcolors()) > 10


def test_types_side_by_side(tmp_path):
    out = tmp_path / 'models.json'
    dtypes = ['float32', 'bfloat16', 'bfloat16-weights']
    options = ['--sizes', '32', '--repeats', '1', '--device', 'cpu', '--json', str(out), '--dtype']
    benchmark.main([PICO, 'mmpretrain.ConvNeXt:atto', *options, *dtypes])
    rows = json.loads(out.read_text())['rows']
    names = [PICO, 'mmpretrain.ConvNeXt:atto']
    assert [row['model'] for row in rows] == [f'{name}, {dtype}' for name in names for dtype in dtypes]
    assert rows[0]['time_ratio'] == 1


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'bfloat16-weights'])
def test_a_type_is_what_is_computed_in(precision):
    model, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    got = benchmark.runnables(model, x, precision, 'inference')['inference']()
    assert got.dtype == (torch.float32 if precision == 'float32' else torch.bfloat16)
    assert model.weight.dtype == torch.float32


def test_converted_weights_are_not_trained(capsys):
    with pytest.raises(SystemExit, match='2'):
        benchmark.main([PICO, '--mode', 'train', '--dtype', 'bfloat16-weights'])
    assert 'are for inference; to train, autocast to a dtype' in capsys.readouterr().err


def test_unknown_model_is_one_line(capsys):
    with pytest.raises(SystemExit, match='2'):
        benchmark.main(['no_such_model'])
    assert capsys.readouterr().err.count('\n') == 1


def test_turns_are_taken():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in 'ab'}
    times = benchmark.measure.interleaved_times(functions, torch.device('cpu'), repeats=2)
    assert order == list('ababab')
    assert {name: len(seconds) for name, seconds in times.items()} == {'a': 2, 'b': 2}


class Gpu:
    """A clock of a host and a GPU that does what it is given one after the other."""

    def __init__(self, host, device):
        self.now, self.free, self.host, self.device = 0.0, 0.0, host, device

    def call(self):
        self.now += self.host
        self.free = max(self.free, self.now) + self.device

    def sleep(self, cycles):
        self.free = max(self.free, self.now) + 1

    def wait(self, device):
        self.now = max(self.now, self.free)

    def event(self, **kwargs):
        event = SimpleNamespace(at=0.0, record=lambda: setattr(event, 'at', max(self.free, self.now)))
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event


# Seconds of the host and of the GPU a call: launching takes longer, or the kernels do.
@pytest.mark.parametrize(('host', 'device'), [(14e-5, 2e-5), (3e-5, 5e-4)])
def test_device_and_host_are_timed_apart(monkeypatch, host, device):
    measure, gpu = benchmark.measure, Gpu(host, device)
    monkeypatch.setattr(torch.cuda, '_sleep', gpu.sleep)
    monkeypatch.setattr(torch.cuda, 'Event', gpu.event)
    monkeypatch.setattr(measure, 'synchronize', gpu.wait)
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: gpu.now)
    times, hosts = measure.launched_times({'scan': gpu.call}, torch.device('cuda'), repeats=3)
    assert times['scan'] == pytest.approx([device] * 3)
    assert hosts['scan'] == pytest.approx([host] * 3)
    # A clock around a call has both in it.
    (both, *_) = measure.interleaved_times({'scan': gpu.call}, torch.device('cuda'), repeats=3)['scan']
    assert both == pytest.approx(host + device)


def test_what_bi_wkv_is_compared_with_computes_the_same():
    torch.manual_seed(0)
    w, u = torch.randn(2, 6).double()
    k, v, cotangent = torch.randn(3, 2, 19, 6).double()
    assert max(benchmark_wkv.errors(benchmark_wkv.token_loop, (w, u, k, v), cotangent).values()) < 1e-12


def test_bi_wkv_rows(tmp_path, capsys):
    path = tmp_path / 'wkv.json'
    command = ['--shapes', '1x37x64', '--repeats', '2', '--device', 'cpu', '--json', str(path)]
    benchmark_wkv.main(command)
    rows = {row['name']: row for row in json.loads(path.read_text())['rows']}
    assert {'torch', 'loop', 'attention'} <= rows.keys() <= {'cpu', 'torch', 'loop', 'attention'}
    assert max(rows['torch'][key] for key in ('y', 'dw', 'du', 'dk', 'dv')) < 2e-6
    assert rows['torch']['tensors'] >= 3
    out = capsys.readouterr().out
    assert '1x37x64' in out
    for row in rows.values():
        assert row['forward_ms'] > 0
        assert f'{row["forward_ms"]:.2f}' in out


def test_bi_wkv_outside_of_its_tolerance_is_not_timed(monkeypatch):
    monkeypatch.setattr(benchmark_wkv, 'TOLERANCE', 0.0)
    monkeypatch.setattr(benchmark_wkv.measure, 'interleaved_times', None)
    with pytest.raises(SystemExit, match=r'error: .* is outside of its tolerance of 0'):
        benchmark_wkv.main(['--shapes', '1x37x64', '--device', 'cpu'])


@pytest.mark.parametrize('model', ['VisionGRU:pico', 'VRWKV:pico'])
def test_backend_reaches_every_scan_of_the_model(model):
    built = build_model(f'mmvisiongru.{model}', 'reference', device='meta')
    backends = [m.backend for m in built.modules() if hasattr(m, 'backend')]
    assert backends
    assert set(backends) == {'reference'}
