"""The scan of minGRU: which backend is taken, and errors of a call."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch

from mmvisiongru.ops import mingru_scan, mingru_scan_2d, runnable_backends
from mmvisiongru.ops.mingru import cpu_scan, torch_scan
from mmvisiongru.ops.mingru.op import BACKENDS
from tests.harness.children import environment
from tests.harness.scans import normal


def test_auto_takes_the_first_runnable_backend():
    names = runnable_backends('cpu')
    assert names == runnable_backends(torch.device('cpu'))
    assert names == runnable_backends()
    assert names[0] != 'reference'
    gate, hidden, _ = normal(2, 200, 3)
    assert torch.equal(mingru_scan(gate, hidden), mingru_scan(gate, hidden, backend=names[0]))


def test_a_named_backend_that_cannot_run_says_every_reason(monkeypatch):
    reasons = ['the moon is full', 'the tide is out']
    monkeypatch.setattr(torch_scan, 'unsupported', lambda device, dtype: reasons)
    assert 'torch' not in runnable_backends('cpu')
    gate, hidden, _ = normal(1, 4, 2)
    (projected,) = normal(1, 2, 2, 8, number=1)
    for call in (partial(mingru_scan, gate, hidden), partial(mingru_scan_2d, projected)):
        with pytest.raises(RuntimeError, match=r"'torch'.*full.*out") as info:
            call(backend='torch')
        assert '\n' not in str(info.value)
        assert call(backend='auto').isfinite().all()


def test_a_log_says_which_backend_and_why_not_another(monkeypatch):
    cpu, name = torch.device('cpu'), runnable_backends('cpu')[0]
    assert BACKENDS.describe('auto', cpu, torch.float32) == f"scan on cpu, float32: backend '{name}'"
    assert BACKENDS.describe('torch', cpu, torch.bfloat16) == "scan on cpu, bfloat16: backend 'torch'"
    monkeypatch.setattr(cpu_scan, 'unsupported', lambda device, dtype: ['no compiler'])
    line = "scan on cpu, float32: backend 'torch'; not 'cpu': no compiler"
    assert BACKENDS.describe('auto', cpu, torch.float32) == line


class TestErrors:
    """One line that shows the value received."""

    gate, hidden, _ = normal(2, 5, 3)

    @pytest.mark.parametrize(
        ('hidden', 'match'),
        [
            (torch.zeros(2, 5, 4), r'\(2, 5, 3\).*\(2, 5, 4\)'),
            (torch.zeros(2, 6, 3), r'\(2, 6, 3\)'),
            (torch.zeros(1, 5, 3), r'\(1, 5, 3\)'),
            (torch.zeros(5, 3), r'\(5, 3\)'),
            (torch.zeros(2, 5, 3, dtype=torch.float64), r'float32.*float64'),
            (torch.zeros(2, 5, 3, dtype=torch.bfloat16), r'bfloat16'),
            (torch.zeros(2, 5, 3, device='meta'), r'cpu.*meta'),
        ],
        ids=['D', 'L', 'B', 'rank', 'float64', 'bfloat16', 'device'],
    )
    def test_mismatch(self, hidden, match):
        with pytest.raises(ValueError, match=match):
            mingru_scan(self.gate, hidden)

    @pytest.mark.parametrize('shape', [(5, 3), (2, 5, 3, 1), (3,)], ids=str)
    def test_rank(self, shape):
        with pytest.raises(ValueError, match=str(shape).replace('(', r'\(').replace(')', r'\)')):
            mingru_scan(torch.zeros(shape), torch.zeros(shape))

    @pytest.mark.parametrize('dtype', [torch.int64, torch.bool, torch.complex64])
    def test_not_floating_point(self, dtype):
        x = torch.zeros(2, 5, 4, dtype=dtype)
        with pytest.raises(ValueError, match=str(dtype)):
            mingru_scan(x, x)
        with pytest.raises(ValueError, match=str(dtype)):
            mingru_scan_2d(x[None])

    @pytest.mark.parametrize(
        ('option', 'value'), [('candidate', 'tanh'), ('backend', 'warp'), ('backend', '')]
    )
    def test_unknown_option(self, option, value):
        with pytest.raises(ValueError, match=f"{option}.*'{value}'"):
            mingru_scan(self.gate, self.hidden, **{option: value})
        with pytest.raises(ValueError, match=f"{option}.*'{value}'"):
            mingru_scan_2d(torch.zeros(1, 2, 2, 8), **{option: value})

    def test_backend_names_are_listed(self):
        with pytest.raises(ValueError, match=r'torch.*reference'):
            mingru_scan(self.gate, self.hidden, backend='warp')

    @pytest.mark.parametrize('paths', [('diagonal',), ('row', 'rows'), ('row,row_reverse',)])
    def test_unknown_path(self, paths):
        with pytest.raises(ValueError, match=f"'{paths[-1]}'"):
            mingru_scan_2d(torch.zeros(1, 2, 2, 8), paths=paths)

    def test_no_path(self):
        with pytest.raises(ValueError, match='path'):
            mingru_scan_2d(torch.zeros(1, 2, 2, 8), paths=())

    @pytest.mark.parametrize('shape', [(1, 2, 2, 6), (1, 2, 8), (1, 2, 2, 2, 8)], ids=str)
    def test_map_that_does_not_divide(self, shape):
        with pytest.raises(ValueError, match=str(shape).replace('(', r'\(').replace(')', r'\)')):
            mingru_scan_2d(torch.zeros(shape))

    @pytest.mark.parametrize('shape', [(1, 2), (1, 1, 2), (2, 2, 2), (1, 2, 4)], ids=str)
    def test_state_of_another_shape(self, shape):
        with pytest.raises(ValueError, match=f'state.*{shape}'.replace('(', r'\(').replace(')', r'\)')):
            mingru_scan_2d(torch.zeros(1, 2, 2, 8), state=torch.zeros(shape))

    def test_options_are_keywords(self):
        with pytest.raises(TypeError):
            mingru_scan(self.gate, self.hidden, True)
        with pytest.raises(TypeError):
            mingru_scan(self.gate, self.hidden, reversed=True)


def test_ops_need_torch_only():
    # In a fresh process: the op is usable where neither Triton nor any OpenMMLab library is installed.
    code = (
        'import sys;'
        "sys.modules.update(dict.fromkeys(['triton', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain']));"
        'import torch; from mmvisiongru.ops import mingru_scan, runnable_backends;'
        "assert 'triton' not in runnable_backends();"
        'print(mingru_scan(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)).flatten().tolist())'
    )
    command, env = [sys.executable, '-c', code], environment(TRITON_INTERPRET='0')
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    # z = 1/2 and g(0) = 1/2: h_1 = 1/4, h_2 = 1/8 + 1/4.
    assert json.loads(done.stdout.splitlines()[-1]) == [0.25, 0.375]
