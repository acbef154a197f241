"""``python -m mmvisiongru``: the page, the check that is green and red, and the benchmark in small."""

import json
import subprocess
import sys
from functools import partial

import pytest

from mmvisiongru.__main__ import main
from mmvisiongru.ops.mingru import torch_scan
from mmvisiongru.ops.wkv import torch_wkv
from mmvisiongru.selfcheck import bench
from tests.harness.children import environment


def test_page_names_versions_backends_and_reasons(tmp_path):
    # Without a compiler and a home of one's own.
    command, variables = [sys.executable, '-W', 'ignore', '-m', 'mmvisiongru'], dict(PATH='', CXX='')
    env = environment(**variables, XDG_CACHE_HOME=str(tmp_path))
    page = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    for text in ('PyTorch: ', 'MMEngine: ', 'scan on cpu:', 'bi_wkv on cpu:', str(tmp_path / 'mmvisiongru')):
        assert text in page
    for line in page.splitlines():
        if line.split()[:1] == ['cpu']:
            assert 'no C++ compiler' in line
        if line.split()[:1] == ['torch']:
            assert 'taken by' in line


def rows(out):
    """Cells of the lines about a backend."""
    return [line.split() for line in out.splitlines() if ' error ' in line]


def test_check_is_green(capsys):
    with pytest.raises(SystemExit) as raised:
        main(['--check', '--small'])
    out = capsys.readouterr().out
    assert not raised.value.code
    assert 'WRONG' not in out
    for dtype in ('float64', 'float32', 'bfloat16', 'float16'):
        assert {row[2] for row in rows(out) if row[3] == dtype and row[0] == 'scan'} >= {'torch', 'reference'}
    assert {row[0] for row in rows(out)} == {'scan', 'bi_wkv', "bi_wkv(distance='released')"}


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
    with pytest.raises(SystemExit) as raised:
        main(['--check', '--small'])
    assert raised.value.code == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith('WRONG')]
    assert f'{operator} cpu torch float32'.split() in [line.split()[:4] for line in lines]
    assert all(line.split()[0].startswith(operator) and line.split()[2] == 'torch' for line in lines)
    assert all(text in line for line in lines)


@pytest.fixture
def small(monkeypatch):
    """A benchmark of small models and maps."""
    monkeypatch.setattr(bench, 'CLASSIFIERS', dict.fromkeys(('one', 'other'), 'visiongru-pico_1xb64_digits'))
    monkeypatch.setattr(bench, 'UPERNET', 'visiongru-pico_upernet_1xb12-1k_digits-64x64')
    monkeypatch.setattr(bench, 'MAPS', ((1, 5, 6),))
    monkeypatch.setattr(bench, 'WIDTH', 8)
    monkeypatch.setattr(bench, 'MAX_ROUNDS', 2)


def test_bench_writes_tables_and_figures(small, tmp_path, capsys):
    main(['--bench', '--minutes', '5', '--json', str(tmp_path / 'b.json')])
    found = json.loads((tmp_path / 'b.json').read_text())
    out = capsys.readouterr().out
    assert len(found['results']) == 7
    for title, group in found['results'].items():
        assert f'\n{title}\n\n| ' in out
        assert group['skipped'] == []
        for row in group['rows']:
            assert row['ms'] > 0
            assert row['ratio'] == pytest.approx(group['rows'][0]['ms'] / row['ms'])
            assert f'| {row["name"]} | ' in out
    assert [row['name'] for row in found['results']['UperNet, training, 2 x 512 x 512']['rows']] == list(
        bench.HEADS
    )


def test_bench_refuses_a_file_that_it_could_not_write(capsys):
    with pytest.raises(SystemExit):
        main(['--bench', '--json', 'no/folder/b.json'])
    assert 'there is no folder no/folder' in capsys.readouterr().err


def test_bench_says_what_it_skips(small, monkeypatch, capsys):
    monkeypatch.setattr(bench, 'CLASSIFIERS', {'one': 'no-such-model'})
    main(['--bench', '--minutes', '0'])
    out = capsys.readouterr().out
    assert out.count('no time left') >= 5
