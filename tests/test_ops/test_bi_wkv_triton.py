"""Bi-WKV in Triton: its numbers, what it touches in memory, and what its kernels compile to.

The numbers come from Triton's interpreter, with every tensor between two pages that nobody may touch. It must
be chosen before Triton is imported: this file, run as a program, is that process.
"""

import faulthandler
import json
from itertools import product
from typing import NamedTuple
from unittest import mock

import pytest
import torch

from mmvisiongru.ops import triton_launch
from mmvisiongru.ops.wkv import triton_wkv
from mmvisiongru.ops.wkv.interface import Wkv
from tests.harness.guarded import PLACES, Guarded
from tests.harness.interpreter import interpreted, mend, results
from tests.harness.scans import TOLERANCE, error
from tests.harness.triton_compile import cross_compile, needs_compiler, spilled
from tests.harness.wkv import NAMES, by_sums, expected, inputs

pytest.importorskip('triton', reason='Triton is not installed, as on other systems than Linux')
if triton_launch.triton_version() < triton_launch.MIN_TRITON:
    pytest.skip('this Triton cannot compile the kernels', allow_module_level=True)

HARD = (-15.0, 15.0)


class Case(NamedTuple):
    """Sizes B, T, C, and what the inputs are like."""

    shape: tuple[int, int, int]
    dtype: torch.dtype = torch.float32
    decay: tuple[float, float] = (-5.0, 3.0)
    deviation: float = 1.0


CASES = {
    'one token': Case((2, 1, 3), decay=HARD),
    'a chunk and one token, masked channels': Case((1, 17, 35), decay=HARD, deviation=4.0),
    'a few tokens, at the limit': Case((1, 3, 5), decay=(50.0, 64.0), deviation=10.0),
    'chunks of two programs, two images': Case((2, 75, 2)),
    'bfloat16': Case((1, 40, 3), torch.bfloat16),
    'float16': Case((1, 16, 3), torch.float16),
}


def tensors_of(case):
    return inputs(*case.shape, case.dtype, case.decay, case.deviation)


def run_case(case, guarded):
    """Errors of both passes; the memory that the backend takes for itself is guarded as well."""

    class Launch(triton_wkv._Launch):
        def __init__(self, x):
            super().__init__(x)
            self.bonus, self.powers = map(guarded.copy, (self.bonus, self.powers))
            top, decay = map(guarded.copy, self.inputs[2:])
            self.inputs = self.inputs._replace(top=top, decay=decay)

        def enter(self, totals):
            return guarded.copy(super().enter(totals))

    w, u, k, v, grad = map(guarded.copy, tensors_of(case))
    x, y = Wkv(w, u, k, v), guarded.copy(v).fill_(torch.nan)
    out = Wkv(*(guarded.copy(t).fill_(torch.nan) for t in x))
    with mock.patch.object(torch, 'empty', guarded.empty), mock.patch.object(triton_wkv, '_Launch', Launch):
        triton_wkv.forward(x, y, 'paper')
        triton_wkv.backward(grad, x, out, 'paper')
    ref = expected(tensors_of(case), by_sums)
    kind = TOLERANCE[case.dtype][0]
    return {n: error(found, ref[n], kind) for n, found in zip(NAMES, (y, *out), strict=True)}


@pytest.fixture(scope='module', autouse=True)
def interpreter():
    """The process that interprets the kernels, beside the tests that compile them."""
    with interpreted(__file__) as process:
        yield process


@pytest.fixture(scope='module')
def errors(interpreter):
    """By place and case."""
    return results(interpreter)


# Name, type of the states, and the bound on bytes of stack: what dw needs of 16 tokens in float64 is more
# than a thread holds in registers, 256 bytes with Triton 3.9 and 128 more before.
COMPILED = [
    ('totals', 'fp32', 0),
    ('totals', 'fp64', 0),
    ('average', 'fp32', 0),
    ('adjoint', 'fp64', 256 if triton_launch.triton_version() >= (3, 9) else 384),
    ('gradients', 'fp32', 0),
]


@needs_compiler
@pytest.mark.parametrize(('name', 'states', 'stack'), COMPILED)
def test_kernels_compile(name, states, stack, tmp_path):
    from mmvisiongru.ops.wkv import triton_kernels

    kernel, map_ = getattr(triton_kernels, name), triton_kernels.Map('*bf16', 48, 48)
    types = dict(bonus='*fp64', parts='*fp64', states=f'*{states}')
    types.update(dict.fromkeys(('powers', 'ratios', 'ratio_states'), '*fp32'))
    types.update(dict.fromkeys(('D', 'L', 'chunks', 'kinds_stride', 'ratios_stride'), 48))
    types.update(x=triton_kernels.Inputs(map_, map_, '*fp32', '*fp64'), grad=map_, MOMENTS=states == 'fp64')
    types.update(triton_wkv.TILE)
    arguments = {argument: types.get(argument, '*bf16') for argument in kernel.arg_names}
    options = dict(triton_launch.OPTIONS, num_warps=triton_wkv.TILE['num_warps'])
    assert spilled(cross_compile(kernel, arguments, 90, options), tmp_path) <= stack


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('name', CASES)
def test_numbers_and_no_access_outside_of_a_tensor(errors, name, place):
    dtype = CASES[name].dtype
    kind, limit = TOLERANCE[dtype]
    if dtype == torch.bfloat16:
        limit *= 2  # the interpreter truncates where a GPU rounds
    for value, found in errors[place][name].items():
        assert found <= limit, f'{value}: {kind} error {found:.2e} > {limit:.0e}'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_results_are_the_same_from_run_to_run():
    from tests.harness.wkv import run_backend

    first, second = (run_backend('triton', inputs(4, 3136, 192), 'cuda') for _ in range(2))
    for name in NAMES:
        assert torch.equal(first[name], second[name]), name


def test_more_tokens_than_a_grid_holds_are_refused():
    """CUDA has 65535 programs in the second dimension, of four chunks of 16 tokens each."""
    w, k = torch.zeros(1), torch.zeros(1, 1, 1).expand(1, 65535 * 64 + 1, 1)
    assert triton_wkv._Launch(Wkv(w, w, k[:, 1:], k[:, 1:])).grid == (1, 65535)
    with pytest.raises(ValueError, match=f'up to {65535 * 64} tokens'):
        triton_wkv._Launch(Wkv(w, w, k, k))


if __name__ == '__main__':
    faulthandler.enable()
    mend()
    found = {place: {} for place in PLACES}
    for place, (name, case) in product(PLACES, CASES.items()):
        print(place, name, flush=True)
        found[place][name] = run_case(case, Guarded(place))
    print(json.dumps(found))
