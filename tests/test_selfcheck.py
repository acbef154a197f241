"""``python -m mmvisiongru``: the page, the check that is green and red, and the benchmark in small."""

import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from mmvisiongru import __version__
from mmvisiongru.__main__ import main
from mmvisiongru.ops import runnable_backends
from mmvisiongru.ops.mingru import torch_scan
from mmvisiongru.ops.wkv import torch_wkv
from mmvisiongru.selfcheck import bench
from mmvisiongru.selfcheck import check as selfcheck
from tests.harness.children import environment


def test_page_names_versions_backends_and_reasons(tmp_path):
    # Without a compiler, and with a cache folder of its own.
    command, variables = [sys.executable, '-W', 'ignore', '-m', 'mmvisiongru'], dict(PATH='', CXX='')
    env = environment(**variables, XDG_CACHE_HOME=str(tmp_path))
    page = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    texts = 'PyTorch: ', 'MMEngine: ', f'mmvisiongru: {__version__}\n', 'scan on cpu:', 'bi_wkv on cpu:'
    assert all(text in page for text in (*texts, str(tmp_path / 'mmvisiongru')))
    for backend, text in (('cpu', 'no C++ compiler'), ('torch', 'taken by')):
        lines = [line for line in page.splitlines() if line.split()[:1] == [backend]]
        # Of the scan and of both distances; no library computes that of the released kernel.
        assert [text in line for line in lines] == [True] * (2 if backend == 'cpu' else 3)


def check(capsys):
    """Exit code of the small check, and the cells of its lines about a backend."""
    with pytest.raises(SystemExit) as raised:
        main(['--check', '--small'])
    return raised.value.code, [x.split() for x in capsys.readouterr().out.splitlines() if ' error ' in x]


def test_check_is_green(capsys):
    code, rows = check(capsys)
    assert not code
    for dtype in ('float64', 'float32', 'bfloat16', 'float16'):
        assert {row[2] for row in rows if row[3] == dtype and row[0] == 'scan'} >= {'torch', 'reference'}
    assert {row[0] for row in rows} == {'scan', 'bi_wkv', "bi_wkv(distance='released')"}


def slightly_wrong(backward, grad, x, h, out, options):
    backward(grad, x, h, out, options)
    out.gate.mul_(1.00002)


def failing(*args):
    raise RuntimeError('no such\nmemory')


@pytest.mark.parametrize(
    ('module', 'name', 'wrong', 'operator', 'text'),
    [
        (torch_scan, 'backward', partial(slightly_wrong, torch_scan.backward), 'scan', ' x '),
        (torch_wkv, 'forward', failing, 'bi_wkv', 'RuntimeError: no such memory'),
    ],
    ids=['wrong gradient', 'failure'],
)
def test_check_is_red(monkeypatch, capsys, module, name, wrong, operator, text):
    monkeypatch.setattr(module, name, wrong)
    # One of the sizes is enough.
    monkeypatch.setattr(selfcheck, 'SMALL_SIZES', ((5, 7),))
    code, rows = check(capsys)
    assert code == 1
    wrong = [row for row in rows if row[-1] == 'WRONG']
    assert [operator, 'cpu', 'torch', 'float32'] in [row[:4] for row in wrong]
    assert all(row[0].startswith(operator) and row[2] == 'torch' for row in wrong)
    assert all(text in ' '.join(row) for row in wrong)


def test_bench_writes_tables_and_figures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, 'CLASSIFIERS', dict.fromkeys(('one', 'other'), 'visiongru-pico_1xb64_digits'))
    monkeypatch.setattr(bench, 'UPERNET', 'visiongru-pico_upernet_1xb12-1k_digits-64x64')
    monkeypatch.setattr(bench, 'MAPS', ((2, 56, 56),))
    monkeypatch.setattr(bench, 'WIDTH', 8)
    monkeypatch.setattr(bench, 'MAX_ROUNDS', 1)
    main(['--bench', '--minutes', '60', '--json', str(tmp_path / 'b.json')])
    machine, found = json.loads((tmp_path / 'b.json').read_text()).values()
    assert machine['scan'] == f"backend '{runnable_backends()[0]}'"
    # Reads and writes float32.
    copy = found['Operators, (2, 56, 56)']['rows'][0]
    assert copy['gb_per_s'] == pytest.approx(2 * 4 * (2 * 56 * 56 * 16) / (1e6 * copy['ms']))
    out = capsys.readouterr().out
    assert {title.split(', ')[0] for title in found} == {'Operators', 'Models', 'UperNet'}
    for title, group in found.items():
        assert f'\n{title}\n\n| ' in out
        assert group['skipped'] == []
        for row in group['rows']:
            assert (row['ms'] > 0, row['runs']) == (True, 1)
            assert row['ratio'] == pytest.approx(group['rows'][0]['ms'] / row['ms'])
            assert f'| {row["name"]} | ' in out
    assert [row['name'] for row in found['UperNet, training, 2 x 512 x 512']['rows']] == list(bench.HEADS)


@pytest.mark.parametrize(('option', 'text'), [('--json=no/x.json', 'no/x'), ('--check', '--check')])
def test_bench_refuses_options(capsys, option, text):
    with pytest.raises(SystemExit):
        main(['--bench', option])
    assert text in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('slowness', [0.1, 0.5, 2, 10, 100])
def test_bench_ends_in_time_on_any_machine(monkeypatch, capsys, slowness):
    """Calls take a pretended time by size, head and pass, every other one half as long again."""
    clock = SimpleNamespace(now=0.0, calls=0)

    def call(seconds):
        clock.calls += 1
        clock.now += slowness * seconds * (1.5 if clock.calls % 2 else 1)

    def builder(seconds):
        return lambda: (call(0.5), partial(call, seconds))[1]

    def model_builders(models, training, side, device):
        head = 4 if models.keys() == set(bench.HEADS) else 1
        return {name: builder(0.2 * head * (side / 224) ** 2 * (1 + 2 * training)) for name in models}

    monkeypatch.setattr(bench, 'time', SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(bench, 'model_builders', model_builders)
    monkeypatch.setattr(bench, 'operator_builders', lambda *_: {name: builder(0.05) for name in bench.MOVED})
    bench.bench(5, None, 0.0)
    out = capsys.readouterr().out
    assert clock.now <= 300
    assert ('no time left' in out) is (slowness > 0.5)
