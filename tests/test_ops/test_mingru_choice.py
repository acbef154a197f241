"""The scan of minGRU: which backend is taken, and errors of a call."""

import json
import re
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
    assert names == runnable_backends(torch.device('cpu')) == runnable_backends()
    assert names[0] != 'reference'
    gate, hidden, _ = normal(2, 200, 3)
    assert torch.equal(mingru_scan(gate, hidden), mingru_scan(gate, hidden, backend=names[0]))


def test_a_named_backend_that_cannot_run_says_every_reason(monkeypatch):
    reasons = ['the moon is full', 'the tide is out']
    monkeypatch.setattr(torch_scan, 'unsupported', lambda device, dtype: reasons)
    assert 'torch' not in runnable_backends('cpu')
    for call in (partial(mingru_scan, SEQUENCE, SEQUENCE), partial(mingru_scan_2d, MAP)):
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


SEQUENCE, MAP = torch.zeros(2, 5, 3), torch.zeros(1, 2, 2, 8)


def calls(call, *values, shown=lambda value: (str(value),)):
    """Calls with each of the values, and the texts that the errors must show."""
    return [pytest.param(partial(call, value), shown(value), id=str(shown(value))) for value in values]


BAD_CALLS = [
    *calls(
        lambda shape: mingru_scan(SEQUENCE, torch.zeros(shape)),
        *((2, 5, 4), (2, 6, 3), (1, 5, 3), (5, 3)),
        shown=lambda shape: ('(2, 5, 3)', str(shape)),
    ),
    *calls(
        lambda kind: mingru_scan(SEQUENCE, SEQUENCE.to(kind)),
        *(torch.float64, torch.bfloat16, 'meta'),
        shown=lambda kind: ('float32 on cpu', str(kind)),
    ),
    *calls(lambda shape: mingru_scan(*[torch.zeros(shape)] * 2), (5, 3), (2, 5, 3, 1), (3,)),
    *calls(lambda shape: mingru_scan_2d(torch.zeros(shape)), (1, 2, 2, 6), (1, 2, 8), (1, 2, 2, 2, 8)),
    *calls(lambda dtype: mingru_scan(*[SEQUENCE.to(dtype)] * 2), torch.int64, torch.bool, torch.complex64),
    *calls(lambda dtype: mingru_scan_2d(MAP.to(dtype)), torch.int64, torch.bool),
    *calls(lambda p: mingru_scan_2d(MAP, paths=p), ('row', 'rows'), ('row,column',), (), {'row'}),
    *calls(lambda shape: mingru_scan_2d(MAP, state=torch.zeros(shape)), (1, 2), (1, 1, 2), (2, 2, 2)),
    *calls(lambda device: mingru_scan_2d(MAP, state=torch.zeros(1, 2, 2, device=device)), 'meta'),
    *(
        pytest.param(partial(call, **{option: value}), (option, repr(value), *more), id=f'{option}={value}')
        for call in (partial(mingru_scan, SEQUENCE, SEQUENCE), partial(mingru_scan_2d, MAP))
        for option, value, *more in (('candidate', 'tanh'), ('backend', ''), ('backend', 'warp', "'torch'"))
    ),
]


@pytest.mark.parametrize(('call', 'shown'), BAD_CALLS)
def test_errors_are_one_line_that_shows_what_was_given(call, shown):
    with pytest.raises(ValueError, match=re.escape(shown[0])) as raised:
        call()
    assert '\n' not in str(raised.value)
    assert all(text in str(raised.value) for text in shown)


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
