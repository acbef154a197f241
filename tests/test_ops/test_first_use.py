"""The check of Triton kernels on their first use, with kernels that are right, wrong, and that fail.

Triton's interpreter runs them on the CPU, where 'auto' prefers them once there is no C++ compiler. It must be
chosen before Triton is imported: this file, run as a program, is that process.
"""

import json
import logging
import sys
from contextlib import ExitStack
from subprocess import CalledProcessError
from types import ModuleType
from unittest import mock

import pytest
import torch

from mmvisiongru.ops import bi_wkv, first_use, mingru_scan, native, runnable_backends, triton_launch
from mmvisiongru.ops.mingru import op
from mmvisiongru.ops.wkv import op as wkv_op
from tests.harness.interpreter import interpreted, mend, results

# The interpreter looks for it beside a kernel.
tl = pytest.importorskip('triton.language', reason='Triton is not installed, as on other systems than Linux')
if triton_launch.triton_version() < triton_launch.MIN_TRITON:
    pytest.skip('this Triton cannot compile the kernels', allow_module_level=True)


def scan(**options):
    return mingru_scan(torch.ones(1, 9, 3), torch.ones(1, 9, 3), **options)


def use(kernels):
    """Backends that 'auto' prefers, warnings, and checks made, in two processes one after the other."""
    import triton

    from mmvisiongru.ops.mingru import triton_kernels

    @triton.jit
    def identity(x):
        return x

    if kernels == 'wrong':
        triton_kernels._sigmoid = identity
    warnings, names, tries = [], [], []
    log = logging.getLogger('mmvisiongru')
    log.addHandler(
        mock.Mock(level=logging.WARNING, handle=lambda record: warnings.append(record.getMessage()))
    )
    compare = mock.Mock(side_effect=first_use._compare)
    first_use._compare = compare
    # The check is in float32, whatever the default is.
    torch.set_default_dtype(torch.bfloat16)
    runnable_backends(), wkv_op.runnable_backends()
    torch.set_default_dtype(torch.float32)
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
    """Both start at once."""
    with ExitStack() as stack:
        yield {
            kernels: stack.enter_context(
                interpreted(__file__, kernels, XDG_CACHE_HOME=str(tmp_path_factory.mktemp('cache')))
            )
            for kernels in ('right', 'wrong')
        }


@pytest.mark.parametrize('kernels', ['right', 'wrong'])
def test_wrong_kernels_are_not_taken_and_said_once_per_process(processes, kernels):
    found, right = results(processes[kernels]), kernels == 'right'
    assert set(found['names']) == {'triton' if right else 'torch'}
    assert found['wkv'] == 'triton'
    assert found['error'] < 1e-6
    # Both operators are checked once; another process checks again what was not right.
    assert found['tries'] == ([2, 2] if right else [2, 3])
    assert len(found['warnings']) == (0 if right else 3)
    for warning in found['warnings']:
        assert all(text in warning for text in ('scan on cpu', "'triton'", "'torch'"))
        assert '\n' not in warning
    assert ("not 'triton': differs" in found['line']) is not right


def test_missing_headers_are_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    example = mock.Mock(side_effect=CalledProcessError(1, ['/usr/bin/gcc', 'main.c']))
    for _ in range(2):
        reason = first_use.problem('scan', op.BACKENDS.module('torch'), example, torch.device('cpu'))
        assert 'gcc' in reason
        assert 'python3-dev' in reason
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'torch' is used" in line
    assert '\n' not in line


def test_a_check_is_remembered_by_gpu_versions_and_sources(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    (tmp_path / 'triton_kernels.py').write_text('a kernel')
    module, example = ModuleType('op'), mock.Mock(return_value=[torch.ones(2)])
    module.__file__ = op.__file__
    for checks, (place, name, value) in enumerate(
        (
            (torch.cuda, 'get_device_name', lambda device: 'H100'),
            (torch.cuda, 'get_device_name', lambda device: 'H200'),
            (torch, '__version__', '2.16.0'),
            (first_use, 'version', lambda name: '3.9.1'),
            (module, '__file__', str(tmp_path / 'op.py')),
        ),
        1,
    ):
        monkeypatch.setattr(place, name, value)
        # In two processes.
        for _ in range(2):
            first_use.problem.cache_clear()
            assert not first_use.problem('scan', module, example, torch.device('cuda'))
        assert example.call_count == 2 * checks
    # Nowhere to remember it, and nothing lost but time.
    monkeypatch.setattr(first_use, 'cache_folder', mock.Mock(side_effect=PermissionError))
    first_use.problem.cache_clear()
    assert not first_use.problem('scan', module, example, torch.device('cuda'))


if __name__ == '__main__':
    mend()
    native.shutil.which = lambda name: None
    use(sys.argv[1])
