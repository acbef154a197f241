"""The Triton backend: what its kernels compile to, their numbers, and that they stay inside their tensors.

Without a GPU the numbers come from Triton's interpreter, with every tensor between two pages that nobody may
touch: a GPU may or may not notice a read beyond the end of a tensor. The interpreter must be chosen before
Triton is imported, so this file, run as a program, measures in a process of its own, while the tests compile
for GPUs in theirs. With a GPU at hand the numbers come from it.
"""

import faulthandler
import json
import re
import sys
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError
from itertools import product
from typing import NamedTuple
from unittest import mock

import pytest
import torch

from mmvisiongru.ops import mingru_scan_2d, runnable_backends, triton_launch
from mmvisiongru.ops.mingru import triton_scan
from mmvisiongru.ops.mingru.interface import PreActivations, ScanOptions
from mmvisiongru.ops.scan_paths import PATHS as KNOWN
from tests.harness.guarded import PLACES, Guarded
from tests.harness.interpreter import interpreted, mend, results
from tests.harness.scans import COLUMNS, PATHS, ROWS, TOLERANCE, by_loop, composed_2d, error, normal, run
from tests.harness.triton_compile import cross_compile, needs_compiler, spilled

triton = pytest.importorskip('triton', reason='Triton is not installed, as on other systems than Linux')
if triton_launch.triton_version() < triton_launch.MIN_TRITON:
    pytest.skip(f'Triton {triton.__version__} cannot compile the kernels', allow_module_level=True)

CUDA = torch.cuda.is_available()
H200 = 132  # processors
FAR = 'tokens 2 ** 31 elements apart'


class Case(NamedTuple):
    """Scan of (B, H, W, D) with the limits of a small GPU, and the rows and chunks that it must have."""

    shape: tuple[int, int, int, int]
    rows: int
    chunks: int = 1
    paths: tuple[str, ...] = ('row',)
    candidate: str = 'g'
    dtype: torch.dtype = torch.float32
    state: bool = False
    gate_scale: float = 1.0
    limits: dict = {}


# Few tokens a row and a warp make many tiles of a short sequence.
ONE_WARP, FOUR_WARPS = dict(STEPS=2, MAX_WARPS=1), dict(STEPS=2, MAX_WARPS=4)
CHUNKS = dict(STEPS=2, MAX_WARPS=1, MIN_CHUNK=4, MIN_GAIN=2)
CASES = {
    'one token': Case((2, 1, 1, 16), rows=4, paths=ROWS),
    'one row': Case((1, 3, 3, 64), rows=1, limits=ONE_WARP),
    'one row, linear, state': Case((1, 3, 3, 64), 1, candidate='linear', state=True, limits=ONE_WARP),
    'exchange, tail': Case((1, 3, 7, 16), rows=4, paths=ROWS, limits=ONE_WARP),
    'exchange over warps': Case((1, 5, 9, 16), rows=16, paths=('row_reverse',), limits=FOUR_WARPS),
    'exchange, eight steps': Case((1, 4, 9, 32), rows=2, limits=dict(MAX_WARPS=1)),
    'eight warps': Case((1, 10, 21, 16), rows=32, paths=ROWS),
    'eight warps, columns, masked': Case((1, 11, 14, 20), rows=32, paths=COLUMNS),
    'exchange, linear, state': Case((2, 2, 5, 16), 4, candidate='linear', state=True, limits=ONE_WARP),
    'columns, masked channels': Case((1, 4, 3, 20), rows=4, paths=PATHS, limits=ONE_WARP),
    'columns of one token, one channel': Case((1, 1, 9, 1), 4, paths=COLUMNS, limits=ONE_WARP),
    'rows of one token': Case((1, 9, 1, 3), rows=4, paths=('row_reverse', 'column'), limits=ONE_WARP),
    'chunks': Case((1, 6, 9, 16), rows=16, chunks=9, paths=ROWS, limits=CHUNKS),
    'chunks, columns, masked, state': Case((1, 8, 11, 20), 16, 22, COLUMNS, state=True, limits=CHUNKS),
    'chunks, linear': Case((2, 6, 9, 16), rows=16, chunks=9, candidate='linear', limits=CHUNKS),
    # More than the 64 rows of chunk_states hold at once.
    'many chunks': Case((1, 8, 17, 3), 16, 68, limits=dict(STEPS=1, MAX_WARPS=1, MIN_CHUNK=2)),
    'saturated': Case((1, 3, 7, 16), rows=4, paths=ROWS, gate_scale=20.0, limits=ONE_WARP),
    'bfloat16': Case((1, 3, 7, 32), rows=2, paths=ROWS, dtype=torch.bfloat16, limits=ONE_WARP),
    'float16': Case((1, 3, 7, 32), rows=2, paths=ROWS, dtype=torch.float16, limits=ONE_WARP),
    'bfloat16, chunks': Case((1, 6, 9, 16), 16, 9, COLUMNS[1:], dtype=torch.bfloat16, limits=CHUNKS),
}


def inputs_of(case):
    B, H, W, D = case.shape
    P = len(case.paths)
    projected, cotangent = (normal(B, H, W, P * n * D, number=1)[0] for n in (2, 1))
    projected.unflatten(3, (P, 2, D))[..., 1, :] *= case.gate_scale
    state = normal(B, P, D, number=1, seed=1)[0] if case.state else None
    return projected.to(case.dtype), cotangent.to(case.dtype), state


def reference_of(case):
    """Output and gradient in float64; with a state, which has no gradient, the output alone."""
    projected, cotangent, state = inputs_of(case)
    options = dict(paths=case.paths, candidate=case.candidate)
    if case.state:
        out = mingru_scan_2d(projected.double(), **options, state=state.double(), backend='reference')
        return dict(out=out)
    return run(partial(composed_2d, **options), projected.double(), cotangent=cotangent.double())


class OnDevice:
    """What Guarded is on a CPU, without guards."""

    empty = staticmethod(torch.empty)

    def copy(self, x):
        return None if x is None else x.cuda()


def measure(case, memory):
    """Errors of the Triton backend, and rows and chunks of its launch."""
    projected, cotangent, state = map(memory.copy, inputs_of(case))
    scan = partial(mingru_scan_2d, paths=case.paths, candidate=case.candidate, backend='triton')
    plain, launches = triton_launch.launch.__wrapped__, []

    def launch(*args):
        launches.append(plain(*args))
        return launches[-1]

    changed = dict(case.limits, launch=launch, processors=lambda device: H200)
    # The memory that the backend takes for itself is guarded as well.
    with mock.patch.multiple(triton_launch, **changed), mock.patch.object(torch, 'empty', memory.empty):
        if case.state:
            got = dict(out=scan(projected, state=state))
        else:
            got = run(scan, projected, cotangent=cotangent)
    assert all(x.dtype == case.dtype for x in got.values())
    kind = TOLERANCE[case.dtype][0]
    errors = {name: error(got[name], x, kind) for name, x in reference_of(case).items()}
    return dict(errors=errors, plan=[launches[0][1][name] for name in ('ROWS', 'chunks')])


def measure_far(device):
    """Tokens so far apart that a 32-bit offset would wrap; the memory between them is never touched."""
    L, D, stride = 17, 16, 1 << 27
    memory = torch.empty((L - 1) * stride + 4 * D, dtype=torch.float16, device=device)
    maps = [memory.as_strided((1, 1, L, 1, D), (0, 0, stride, D, 1), n * D) for n in range(4)]
    x, out, options = PreActivations(*maps[:2]), PreActivations(*maps[2:]), ScanOptions.of('row', 'g')
    values = normal(1, 1, L, 1, D, dtype=torch.float16)
    x.gate.copy_(values[0])
    x.hidden.copy_(values[1])
    grad = values[2].to(device)
    h = torch.empty_like(grad)
    triton_scan.forward(x, h, options)
    triton_scan.backward(grad, x, h, out, options)
    ref = by_loop(*(v.view(1, L, D) for v in values))
    got = dict(out=h, d_gate=out.gate, d_hidden=out.hidden)
    return dict(errors={name: error(v.reshape(1, L, D), ref[name], 'rms') for name, v in got.items()})


def measure_all(place):
    # So that an element which no kernel writes is NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    results = {}
    for name, case in CASES.items():
        print(name, flush=True)
        results[name] = measure(case, OnDevice() if CUDA else Guarded(place))
    torch.use_deterministic_algorithms(False)
    # No guards are around that one.
    return results | ({FAR: measure_far('cuda' if CUDA else 'cpu')} if place != PLACES[1] else {})


@pytest.fixture(scope='module', autouse=True)
def interpreters():
    """The processes that interpret the kernels, from the first test on."""
    with ExitStack() as stack:
        yield {place: stack.enter_context(interpreted(__file__, place)) for place in PLACES if not CUDA}


@pytest.fixture(scope='module')
def errors(interpreters):
    """By place and case."""
    if CUDA:
        return dict.fromkeys(PLACES, measure_all(None))
    return {place: results(process) for place, process in interpreters.items()}


# ---- what the kernels compile to


def launch(shape, paths, backward):
    """Arguments of a launch on a large GPU."""
    paths = tuple(KNOWN[path] for path in paths)
    return dict(triton_launch.launch(torch.Size(shape), paths, backward, H200)[1], LINEAR=False)


def assert_compiles(name, capability, launched, folder):
    """For bfloat16: it spills nothing, and reads and writes two channels at a time."""
    from mmvisiongru.ops import triton_affine
    from mmvisiongru.ops.mingru import triton_kernels

    kernel = getattr(triton_affine if name == 'chunk_states' else triton_kernels, name)
    options = dict(triton_launch.OPTIONS, num_warps=launched['num_warps'])
    strides = triton_launch.Strides(144, 144, 144)
    gates = triton_kernels.PreActivations('*bf16', '*bf16', strides)
    map_ = triton_kernels.Map('*bf16', strides)
    arguments = dict(grad='*bf16', h='*bf16', x=gates, gate=map_, value=map_, sums='*fp32', first=None)
    arguments.update(out=gates if name == 'scan_backward' else '*bf16')
    arguments.update(states='*fp32' if launched.get('CHUNKED') else None, **launched)
    binary = cross_compile(kernel, arguments, capability, options)
    assert spilled(binary, folder) == 0
    assert not re.search(r'(ld|st)\.global\S*\.[bu]16', binary.asm['ptx'])


@needs_compiler
@pytest.mark.parametrize('capability', [80, 90])
# Maps (B, H, W, P, D) that make programs of so many warps.
@pytest.mark.parametrize(('warps', 'shape'), [(1, (128, 56, 56, 4, 144)), (8, (4, 56, 56, 4, 144))])
@pytest.mark.parametrize('name', ['scan_forward', 'scan_backward'])
def test_no_spills(name, shape, warps, capability, tmp_path):
    launched = launch(shape, ROWS + COLUMNS, name == 'scan_backward') | dict(CHUNKED=False)
    assert (launched['chunks'], launched['num_warps']) == (1, warps)
    assert_compiles(name, capability, launched, tmp_path)


@needs_compiler
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize(
    ('name', 'further'),
    [
        ('scan_forward', dict(CHUNKED=True)),
        ('scan_backward', dict(CHUNKED=True)),
        ('chunk_sums', dict(BACKWARD=False)),
        ('chunk_sums', dict(BACKWARD=True)),
        ('chunk_states', triton_launch.STATES),
    ],
)
def test_no_spills_in_chunks(name, further, capability, tmp_path):
    launched = launch((1, 312, 312, 2, 144), ROWS, name == 'scan_backward')
    assert launched['chunks'] > 1
    assert_compiles(name, capability, launched | further, tmp_path)


# ---- numbers


@pytest.mark.parametrize(('name', 'place'), [*product(CASES, PLACES), (FAR, PLACES[0])])
def test_numbers_and_no_access_outside_of_a_tensor(errors, name, place):
    case, found = CASES.get(name, Case((), 0, dtype=torch.float16)), errors[place][name]
    if name in CASES:
        assert found['plan'] == [case.rows, case.chunks]
    kind, limit = TOLERANCE[case.dtype]
    if case.dtype == torch.bfloat16 and not CUDA:
        limit *= 2  # the interpreter truncates where a GPU rounds
    for value, size in found['errors'].items():
        assert size <= limit, f'{value}: {kind} error {size:.2e} > {limit:.0e}'


# ---- the launch and the choice


@pytest.mark.parametrize('inner', [1, 16, 50, 144, 288, 576, 1152])
def test_launches_cover_the_map_and_fill_the_gpu(inner):
    for images, side in product((1, 2, 16, 256), (1, 7, 56, 156, 312)):
        found = launch((images, side, side, 2, inner), ROWS, False)
        length, lanes, chunk, chunks = side**2, found['LANES'], found['chunk'], found['chunks']
        assert (chunks - 1) * chunk < length <= chunks * chunk
        assert chunks == 1 or chunk % triton_launch.STEPS == 0
        assert found['ROWS'] * lanes == found['num_warps'] * 64
        assert inner % lanes == 0 or lanes == 16
        programs = images * 2 * -(-inner // lanes)
        # Chunks only where one launch of 8 warps a program would leave three quarters of the GPU idle.
        assert chunks == 1 or programs * 8 * 4 <= 16 * H200
        assert chunks > 1 or side < 312 or programs * 8 * 4 > 16 * H200


def test_more_tokens_than_32_bits_count_are_refused():
    with pytest.raises(ValueError, match='1073741824 tokens, got 32768 x 32768'):
        launch((1, 1 << 15, 1 << 15, 1, 16), ROWS[:1], False)


@pytest.mark.parametrize('height', [1, 2, 3, 7, 56, 1000, 32767, 32768, 65537, (1 << 29) + 1])
def test_division_by_the_height_is_exact(height):
    width = (1 << 30) // height - 1 or 1
    found = launch((1, height, width, 1, 16), ('column',), False)
    assert found['magic'] < 1 << 31
    edges = [n * height + d for n in (0, 1, 2, width // 2, width - 1, width) for d in (-1, 0, height - 1)]
    for time in (t for t in edges if 0 <= t < 1 << 30):
        assert time * found['magic'] >> found['shift'] == time // height


def test_reasons(monkeypatch):
    unsupported, cpu = triton_launch.unsupported.__wrapped__, torch.device('cpu')
    monkeypatch.setattr(triton_launch, 'INTERPRETED', False)
    assert unsupported(cpu, torch.float32) == ['tensors are on cpu']
    assert 'triton' not in runnable_backends('cpu')
    assert unsupported(cpu, torch.float64) == ['torch.float64 is not supported', 'tensors are on cpu']
    monkeypatch.setattr(triton_launch, 'INTERPRETED', True)
    assert unsupported(cpu, torch.bfloat16) == []
    for version in (mock.Mock(side_effect=PackageNotFoundError('triton')), lambda name: '3.2.0+git1'):
        monkeypatch.setattr(triton_launch, 'version', version)
        assert unsupported(cpu, torch.float32) == ['Triton 3.3 or later is not installed']


if __name__ == '__main__':
    faulthandler.enable()
    mend()
    print(json.dumps(measure_all(sys.argv[1])))
