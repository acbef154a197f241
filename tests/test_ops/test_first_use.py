"""The check of Triton kernels on their first use, with kernels that are right, wrong, and that fail.

Triton's interpreter runs them on the CPU, where 'auto' prefers them once there is no C++ compiler. It must be
chosen before Triton is imported: this file, run as a program, is that process.
"""

import json
import logging
import sys
from contextlib import ExitStack
from unittest import mock

import pytest
import torch

from mmvisiongru.ops import bi_wkv, first_use, mingru_scan, native, runnable_backends, triton_launch
from mmvisiongru.ops.mingru import op
from mmvisiongru.ops.wkv import op as wkv_op
from tests.harness.children import PATIENCE
from tests.harness.interpreter import interpreted, mend

# The interpreter looks for it beside a kernel.
tl = pytest.importorskip('triton.language', reason='Triton is not installed, as on other systems than Linux')
if triton_launch.triton_version() < triton_launch.MIN_TRITON:
    pytest.skip('this Triton cannot compile the kernels', allow_module_level=True)

KERNELS = ('right', 'wrong', 'failing')


def scan(**options):
    return mingru_scan(torch.ones(1, 9, 3), torch.ones(1, 9, 3), **options)


def use(kernels):
    """Backends that 'auto' prefers, warnings, and checks made, in two processes one after the other."""
    import triton

    from mmvisiongru.ops.mingru import triton_kernels
    from mmvisiongru.ops.wkv import triton_wkv

    @triton.jit
    def identity(x):
        return x

    def fail(*args):
        raise RuntimeError('no such\nmemory')

    if kernels == 'wrong':
        triton_kernels._sigmoid = identity
    elif kernels == 'failing':
        triton_wkv.forward = fail
    warnings, names, tries = [], [], []
    log = logging.getLogger('mmvisiongru')
    log.addHandler(
        mock.Mock(level=logging.WARNING, handle=lambda record: warnings.append(record.getMessage()))
    )
    compare = mock.Mock(side_effect=first_use._compare)
    first_use._compare = compare
    for _ in range(2):
        for _ in range(3):
            bi_wkv(torch.ones(3), torch.ones(3), *torch.ones(2, 1, 2, 3))
            names.append(runnable_backends()[0])
            error = (scan() - scan(backend='reference')).abs().max().item()
        tries.append(compare.call_count)
        # As a new process.
        first_use.problem.cache_clear()
    line = op.BACKENDS.describe('auto', torch.device('cpu'), torch.float32)
    wkv = wkv_op.BACKENDS['paper'].runnable()[0]
    print(json.dumps(dict(names=names, wkv=wkv, warnings=warnings, tries=tries, error=error, line=line)))


@pytest.fixture(scope='module')
def processes(tmp_path_factory):
    """All at once."""
    with ExitStack() as stack:
        yield {
            kernels: stack.enter_context(
                interpreted(__file__, kernels, XDG_CACHE_HOME=str(tmp_path_factory.mktemp('cache')))
            )
            for kernels in KERNELS
        }


@pytest.mark.parametrize('kernels', KERNELS)
def test_wrong_kernels_are_not_taken_and_said_once_per_process(processes, kernels):
    out, err = processes[kernels].communicate(timeout=PATIENCE)
    assert processes[kernels].returncode == 0, err[-2000:]
    found = json.loads(out.splitlines()[-1])
    expected = dict(right=('triton', 'triton'), wrong=('torch', 'triton'), failing=('triton', 'torch'))[
        kernels
    ]
    assert set(found['names']) == {expected[0]}
    assert found['wkv'] == expected[1]
    assert found['error'] < 1e-6
    # Both operators are checked once; another process checks again what was not right.
    assert found['tries'] == ([2, 2] if kernels == 'right' else [2, 3])
    operator = dict(right=None, wrong='scan on cpu', failing='bi_wkv on cpu')[kernels]
    assert len(found['warnings']) == (0 if operator is None else 3)
    for warning in found['warnings']:
        assert all(text in warning for text in (operator, "'triton'", "'torch'"))
        assert '\n' not in warning
    assert ("not 'triton': differs" in found['line']) == (kernels == 'wrong')


if __name__ == '__main__':
    mend()
    native.shutil.which = lambda name: None
    use(sys.argv[1])
