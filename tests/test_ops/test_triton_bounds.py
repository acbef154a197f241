"""The Triton kernels touch no memory outside their tensors.

A GPU may or may not notice a read beyond the end of a tensor. Here every tensor lies between two pages that
nobody may touch, and the kernels run in Triton's interpreter, so that any such access ends the process. The
interpreter must be chosen before Triton is imported: this file, run as a program, is that process.
"""

import ctypes
import faulthandler
import subprocess
import sys
from unittest import mock

import pytest
import torch

from mmvisiongru.ops import triton_launch
from mmvisiongru.ops.mingru import triton_scan
from mmvisiongru.ops.mingru.passes import Gates, Mode
from tests.harness.children import PATIENCE, environment
from tests.harness.guarded import PLACES, Guarded
from tests.harness.interpreter import mend
from tests.harness.triton_cases import CASES, H200, inputs_of

# Asks the process to read outside on purpose: without a guard that works the other tests would mean nothing.
TRESPASS = 'trespass'


def run_case(case, guarded):
    """Both passes of a scan, the memory that the backend takes for itself included."""
    projected, cotangent, state = map(guarded.copy, inputs_of(case))
    B, H, W, D = case.shape
    P = len(case.paths)
    x = projected.view(B, H, W, P, 2, D)
    out, gradient = guarded.empty(B, H, W, P, D, dtype=case.dtype), guarded.empty(x.shape, dtype=case.dtype)
    inputs, gradients = (Gates(t[..., 1, :], t[..., 0, :]) for t in (x, gradient))
    mode = Mode.of(','.join(case.paths), case.candidate)
    triton_launch.launch.cache_clear()
    limits = dict(case.limits, processors=lambda device: H200)
    with mock.patch.multiple(triton_launch, **limits), mock.patch.object(torch, 'empty', guarded.empty):
        triton_scan.forward(inputs, out, mode, state)
        triton_scan.backward(cotangent.view(out.shape), inputs, out, gradients, mode)
    triton_launch.launch.cache_clear()
    assert not out.isnan().any()
    assert not gradient.isnan().any()


def run_all(place):
    faulthandler.enable()
    mend()
    for name, case in CASES.items():
        print(name, flush=True)
        run_case(case, Guarded(place))
    print('done')


@pytest.mark.skipif(sys.platform == 'win32', reason='there is no mprotect on Windows')
@pytest.mark.parametrize('place', PLACES)
def test_no_kernel_reads_or_writes_outside_its_tensors(place):
    child = start(place)
    lines = child.stdout.split('\n')
    assert child.returncode == 0, f'died in the case {lines[-2]!r}\n{child.stderr[-1000:]}'
    assert lines[-2] == 'done'


@pytest.mark.skipif(sys.platform == 'win32', reason='there is no mprotect on Windows')
def test_the_guard_pages_are_forbidden():
    assert start(TRESPASS).returncode < 0


def start(argument):
    command = [sys.executable, '-W', 'ignore', __file__, argument]
    return subprocess.run(
        command, env=environment(TRITON_INTERPRET='1'), capture_output=True, text=True, timeout=PATIENCE
    )


if __name__ == '__main__':
    if sys.argv[1] == TRESPASS:
        tensor = Guarded(PLACES[0]).empty(3)
        ctypes.string_at(tensor.data_ptr() + tensor.nbytes, 1)
    else:
        run_all(sys.argv[1])
