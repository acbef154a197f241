"""The Triton backend: what its kernels compile to, their numbers, and that they stay inside their tensors.

Without a GPU the numbers come from Triton's interpreter, with every tensor between two pages that nobody may
touch: a GPU may or may not notice a read beyond the end of a tensor. The interpreter must be chosen before
Triton is imported, so this file, run as a program, measures in a process of its own, while the tests compile
for GPUs in theirs. With a GPU at hand the numbers come from it.
"""

import ctypes
import faulthandler
import json
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError
from itertools import product
from unittest import mock

import pytest
import torch

from mmvisiongru.ops import first_use, mingru_scan, mingru_scan_2d, runnable_backends, triton_launch
from mmvisiongru.ops.mingru import triton_scan
from mmvisiongru.ops.mingru.interface import PreActivations, ScanOptions
from mmvisiongru.ops.mingru.op import BACKENDS
from mmvisiongru.ops.scan_paths import PATHS as KNOWN
from tests.harness.children import PATIENCE, in_child
from tests.harness.guarded import PLACES, Guarded
from tests.harness.interpreter import interpreted, mend
from tests.harness.scans import PATHS, ROWS, TOLERANCE, composed_2d, error, normal, run
from tests.harness.triton_cases import CASES, H200, Case, inputs_of
from tests.harness.triton_compile import (
    MORE_REGISTERS,
    cross_compile,
    needs_compiler,
    resources,
)

triton = pytest.importorskip('triton', reason='Triton is not installed, as on other systems than Linux')
if triton_launch.triton_version() < triton_launch.MIN_TRITON:
    pytest.skip(f'Triton {triton.__version__} cannot compile the kernels', allow_module_level=True)

CUDA = torch.cuda.is_available()


FAR = 'tokens 2 ** 31 elements apart'


def reference_of(case):
    """Output and gradient in float64; with a state, which has no gradient, the output alone."""
    projected, cotangent, state = inputs_of(case)
    if case.state:
        scan = partial(mingru_scan_2d, paths=case.paths, candidate=case.candidate, backend='reference')
        return dict(out=scan(projected.double(), state=state.double()))
    scan = partial(composed_2d, paths=case.paths, candidate=case.candidate)
    return run(scan, projected.double(), cotangent=cotangent.double())


class OnDevice:
    """What Guarded is on a CPU, without guards."""

    empty = staticmethod(torch.empty)

    def copy(self, x):
        return None if x is None else x.cuda()


def measure(case, memory):
    """Errors of the Triton backend, and the plan that it made."""
    projected, cotangent, state = map(memory.copy, inputs_of(case))
    scan = partial(mingru_scan_2d, paths=case.paths, candidate=case.candidate, backend='triton')
    plans = []

    def plan(*args):
        plans.append(triton_launch.Plan(*original(*args)))
        return plans[-1]

    original = triton_launch.plan
    triton_launch.launch.cache_clear()
    changed = dict(case.limits, plan=plan, processors=lambda device: H200)
    # The memory that the backend takes for itself is guarded as well.
    with mock.patch.multiple(triton_launch, **changed), mock.patch.object(torch, 'empty', memory.empty):
        got = (
            dict(out=scan(projected, state=state))
            if case.state
            else run(scan, projected, cotangent=cotangent)
        )
    triton_launch.launch.cache_clear()
    assert all(x.dtype == case.dtype for x in got.values())
    kind = TOLERANCE[case.dtype][0]
    errors = {name: error(got[name], x, kind) for name, x in reference_of(case).items()}
    return dict(errors=errors, plan=dict(rows=plans[0].rows, chunks=plans[0].chunks))


def measure_far(device):
    """Tokens so far apart that a 32-bit offset would wrap; the memory between them is never touched."""
    L, D, stride = 17, 16, 1 << 27
    memory = torch.empty((L - 1) * stride + 4 * D, dtype=torch.float16, device=device)
    maps = [memory.as_strided((1, 1, L, 1, D), (0, 0, stride, D, 1), n * D) for n in range(4)]
    gate, hidden, d_gate, d_hidden = maps
    values = normal(1, 1, L, 1, D, dtype=torch.float16)
    gate.copy_(values[0])
    hidden.copy_(values[1])
    grad = values[2].to(device)
    out = torch.empty_like(grad)
    triton_scan.forward(PreActivations(gate, hidden), out, ScanOptions.of('row', 'g'))
    triton_scan.backward(
        grad, PreActivations(gate, hidden), out, PreActivations(d_gate, d_hidden), ScanOptions.of('row', 'g')
    )
    scan = partial(mingru_scan, backend='reference')
    leaves = [x.double().view(1, L, D) for x in values]
    ref = run(scan, *leaves[:2], cotangent=leaves[2])
    got = dict(out=out, d_gate=d_gate, d_hidden=d_hidden)
    return dict(errors={name: error(x.reshape(1, L, D), ref[name], 'rms') for name, x in got.items()})


def measure_all(place):
    # So that an element which no kernel writes is NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    results = {}
    for name, case in CASES.items():
        print(name, flush=True)
        results[name] = measure(case, OnDevice() if CUDA else Guarded(place))
    torch.use_deterministic_algorithms(False)
    return {**results, FAR: measure_far('cuda' if CUDA else 'cpu')}


@pytest.fixture(scope='module', autouse=True)
def interpreters():
    """The processes that interpret the kernels, from the first test on."""
    with ExitStack() as stack:
        yield {place: stack.enter_context(interpreted(__file__, place)) for place in PLACES if not CUDA}


@pytest.fixture(scope='module')
def results(interpreters):
    """Errors by place and case."""
    if CUDA:
        return dict.fromkeys(PLACES, measure_all(None))
    found = {}
    for place, process in interpreters.items():
        out, err = process.communicate(timeout=PATIENCE)
        last = out.splitlines()[-1]
        assert process.returncode == 0, f'died in the case {last!r}\n{err[-3000:]}'
        found[place] = json.loads(last)
    return found


# ---- what the kernels compile to

B, S = 128, 56  # a batch that fills the GPU, of the maps of stage one of 224 x 224 images
# Name, map (B, H, W, P, D), paths, and the bound on registers: 65,536 / (32 x registers) warps are resident.
# In one launch it is what the plan counts with; in chunks, 65,536 / (32 x registers) warps are resident.
COMPILED = [
    ('scan_forward', (64, S, S, 4, 144), PATHS, 1),
    ('scan_forward', (32, S, S, 2, 144), ROWS, 2),
    ('scan_forward', (16, 28, 28, 2, 288), ROWS, 4),
    ('scan_forward', (8, S, S, 2, 144), ROWS, 8),
    ('scan_backward', (128, S, S, 4, 144), PATHS, 1),
    ('scan_backward', (32, S, S, 2, 144), ROWS, 2),
    ('scan_backward', (8, 10, 10, 2, 144), ROWS, 4),
    ('scan_backward', (4, S, S, 4, 144), PATHS, 8),
]
IN_CHUNKS = [
    ('scan_forward', 84, dict(CHUNKED=True)),
    ('scan_backward', 144, dict(CHUNKED=True)),
    *(('chunk_sums', 88, dict(BACKWARD=backward)) for backward in (False, True)),
    ('chunk_states', 104, {}),
]


def launch(shape, paths, backward):
    """Grid and arguments of a launch on a large GPU."""
    paths = tuple(KNOWN[path] for path in paths)
    grid, arguments = triton_launch.launch(torch.Size(shape), paths, backward, H200)
    return grid, dict(arguments, LINEAR=False)


def compiled(name, capability, launched, **further):
    """Cross-compile a kernel for bfloat16 with the arguments of a launch."""
    from mmvisiongru.ops import triton_affine
    from mmvisiongru.ops.mingru import triton_kernels

    kernel = getattr(triton_affine if name == 'chunk_states' else triton_kernels, name)
    options = {k: launched[k] for k in ('num_warps', 'maxnreg') if k in launched} | triton_launch.OPTIONS
    strides = triton_launch.Strides(144, 144, 144)
    gates, map_ = (
        triton_kernels.PreActivations('*bf16', '*bf16', strides),
        triton_kernels.Map('*bf16', strides),
    )
    arguments = dict(grad='*bf16', h='*bf16', x=gates, gate=map_, value=map_, sums='*fp32', first=None)
    arguments.update(out=gates if name == 'scan_backward' else '*bf16')
    arguments.update(states='*fp32' if further.get('CHUNKED') else None, **launched, **further)
    return cross_compile(kernel, arguments, capability, options)


def assert_fits(binary, registers, tmp_path):
    """No spill, no stack, at most so many registers, no atomics, and two 16-bit channels an access."""
    found = resources(binary, tmp_path)
    assert found.pop('REG') <= registers + MORE_REGISTERS
    assert found == dict(STACK=0, LOCAL=0)
    assert not re.search(r'(ld|st)\.global\S*\.[bu]16', binary.asm['ptx'])


@needs_compiler
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize(('name', 'shape', 'paths', 'warps'), COMPILED)
def test_no_spills(name, shape, paths, warps, capability, tmp_path):
    backward = name == 'scan_backward'
    _, arguments = launch(shape, paths, backward)
    assert (arguments['chunks'], arguments['num_warps']) == (1, warps)
    registers = triton_launch.REGISTERS[backward][warps]
    assert_fits(compiled(name, capability, arguments, CHUNKED=False), registers, tmp_path)


@needs_compiler
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize(('name', 'registers', 'further'), IN_CHUNKS)
def test_no_spills_in_chunks(name, registers, further, capability, tmp_path):
    _, arguments = launch((1, 312, 312, 2, 144), ROWS, name == 'scan_backward')
    assert arguments['chunks'] > 1
    states = triton_launch.STATES if name == 'chunk_states' else {}
    assert_fits(compiled(name, capability, {**arguments, **states}, **further), registers, tmp_path)


# ---- numbers


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('name', [*CASES, FAR])
def test_numbers_and_no_access_outside_of_a_tensor(results, name, place):
    case, found = CASES.get(name, Case((), 0, dtype=torch.float16)), results[place][name]
    if name in CASES:
        assert found['plan'] == dict(rows=case.rows, chunks=case.chunks)
    kind, limit = TOLERANCE[case.dtype]
    if case.dtype == torch.bfloat16 and not CUDA:
        limit *= 2  # the interpreter truncates where a GPU rounds
    for value, size in found['errors'].items():
        assert size <= limit, f'{value}: {kind} error {size:.2e} > {limit:.0e}'


def test_the_guard_pages_are_forbidden():
    """Without a guard that works the numbers would say nothing of what is touched."""

    def read_beyond_the_end():
        faulthandler.disable()
        tensor = Guarded(PLACES[0]).empty(3)
        ctypes.string_at(tensor.data_ptr() + tensor.nbytes, 1)

    assert in_child(read_beyond_the_end) == -signal.SIGSEGV


# ---- the plan and the choice


# Sequences, tokens, channels: lanes, chunks, and forward and backward warps and rounds of programs. Of steps
# of 128 and 64 images of 224 x 224 in two paths, of the shapes of docs/performance.md, and of single images.
PLANS = {
    (256, 3136, 144): (16, 1, (1, 0.70), (2, 2.91)),
    (256, 784, 288): (32, 1, (1, 0.70), (2, 2.91)),
    (256, 196, 576): (64, 1, (1, 0.70), (2, 2.91)),
    (256, 49, 1152): (64, 1, (2, 3.49), (1, 2.91)),
    (128, 3136, 144): (16, 1, (2, 0.87), (8, 4.36)),
    (64, 3136, 144): (16, 1, (2, 0.44), (2, 0.73)),
    (8, 16384, 144): (16, 1, (8, 0.27), (8, 0.27)),
    (16, 3136, 144): (16, 1, (8, 0.55), (8, 0.55)),
    (4, 16384, 144): (16, 228, (4, 0.07), (4, 0.14)),
    (4, 256, 1152): (64, 1, (8, 0.27), (8, 0.27)),
    (2, 97344, 144): (16, 468, (4, 0.03), (4, 0.07)),
    (1, 97344, 144): (16, 936, (4, 0.02), (4, 0.03)),
}


@pytest.mark.parametrize('shape', PLANS, ids=str)
def test_plans(shape):
    lanes, chunks, *expected = PLANS[shape]
    for backward, (warps, rounds) in zip((False, True), expected, strict=True):
        plan = triton_launch.plan(*shape, H200, backward)
        programs = shape[0] * -(-shape[2] // plan.lanes)
        assert (plan.lanes, plan.chunks, plan.warps) == (lanes, chunks, warps)
        # What is counted with is what two programs of 8 warps need to share a processor.
        found = programs / (triton_launch.resident(warps, backward) * H200)
        assert round(found, 2) == rounds
        assert not 1 < found < 1.5
        limited = plan.chunks == 1 and warps == 8
        assert (plan.steps, plan.registers) == ((4 if backward else 8, 128) if limited else (8, None))


def test_programs_of_two_rounds_of_which_the_second_is_nearly_empty_are_avoided():
    """576 programs of 4 warps in 120 registers: 528 run at a time, and the other 48 take as long again."""
    assert 1 < 576 / (triton_launch.resident(4, False) * H200) < 1.1
    assert triton_launch.duration(576, 4, H200, False) == 2 * triton_launch.duration(528, 4, H200, False)
    assert triton_launch.plan(64, 3136, 144, H200).warps != 4


@pytest.mark.parametrize(('backward', 'inner'), product((False, True), (1, 16, 50, 144, 288, 576, 1152)))
def test_plan_covers_the_sequence(backward, inner):
    for sequences, length in product((1, 2, 16, 256), (1, 49, 3136, 24336, 97344)):
        assert_covers(triton_launch.plan(sequences, length, inner, H200, backward), sequences, length, inner)


def assert_covers(plan, sequences, length, inner):
    assert (plan.chunks - 1) * plan.chunk < length <= plan.chunks * plan.chunk
    assert plan.chunks == 1 or plan.chunk % plan.steps == 0
    assert plan.rows * plan.lanes == plan.warps * 64
    assert inner % plan.lanes == 0 or plan.lanes == 16
    # Chunks only where one launch of 8 warps a program would leave three quarters of the GPU idle.
    blocks = -(-inner // plan.lanes)
    assert plan.chunks == 1 or sequences * blocks * 8 * 4 <= triton_launch.WARPS_PER_PROCESSOR * H200


@pytest.mark.parametrize('height', [1, 2, 3, 7, 56, 1000, 32767, 32768, 65537, (1 << 29) + 1])
def test_division_by_the_height_is_exact(height):
    width = (1 << 30) // height - 1 or 1
    _, arguments = launch((1, height, width, 1, 16), ('column',), False)
    magic, shift = arguments['magic'], arguments['shift']
    assert magic < 1 << 31
    edges = [n * height + d for n in (0, 1, 2, width // 2, width - 1, width) for d in (-1, 0, height - 1)]
    for time in (t for t in edges if 0 <= t < 1 << 30):
        assert time * magic >> shift == time // height


def test_backward_reads_every_path_from_its_end():
    forward, backward = (launch((1, 3, 3, 4, 16), PATHS, b)[1] for b in (False, True))
    assert (forward['COLUMN'], forward['REVERSE']) == (0b1100, 0b1010)
    assert (backward['COLUMN'], backward['REVERSE']) == (0b1100, 0b0101)


def test_reasons(monkeypatch):
    unsupported = triton_launch.unsupported.__wrapped__
    monkeypatch.setattr(triton_launch, 'INTERPRETED', False)
    cpu = torch.device('cpu')
    assert unsupported(cpu, torch.float32) == ['tensors are on cpu']
    assert 'triton' not in runnable_backends('cpu')
    assert unsupported(cpu, torch.float64) == ['torch.float64 is not supported', 'tensors are on cpu']
    monkeypatch.setattr(triton_launch, 'INTERPRETED', True)
    assert unsupported(cpu, torch.bfloat16) == []
    monkeypatch.setattr(triton_launch, 'version', mock.Mock(side_effect=PackageNotFoundError('triton')))
    assert unsupported(cpu, torch.float32) == ['Triton 3.3 or later is not installed']
    monkeypatch.setattr(triton_launch, 'version', lambda name: '3.2.0+git1')
    assert unsupported(cpu, torch.float32) == ['Triton 3.3 or later is not installed']


NO_COMPILER = 'Failed to find C compiler. Please specify via CC environment variable'
FAILURES = {
    'no compiler': (RuntimeError(NO_COMPILER), f'RuntimeError: {NO_COMPILER}'),
    'no headers': (
        subprocess.CalledProcessError(1, ['/usr/bin/gcc', 'main.c']),
        "gcc cannot build Triton's launcher; are the headers of Python (python3-dev) installed?",
    ),
    'no driver': (AssertionError('libcuda.so cannot found!\n'), 'AssertionError: libcuda.so cannot found!'),
    'wrong': ([False], 'a kernel wrote a wrong number'),
    'no Triton': (None, 'Triton 3.3 or later is not installed'),
}


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    monkeypatch.setattr(first_use, 'problem', lambda *_: '')
    for function in (triton_launch.probe, triton_launch.unsupported):
        function.cache_clear()
    yield torch.device('cuda:0')
    for function in (triton_launch.probe, triton_launch.unsupported):
        function.cache_clear()


@pytest.mark.parametrize('what', FAILURES)
def test_a_gpu_on_which_triton_fails_takes_the_next_backend_and_says_why_once(gpu, monkeypatch, caplog, what):
    from mmvisiongru.ops import triton_probe

    outcome, reason = FAILURES[what]
    launch = mock.Mock(side_effect=outcome)
    monkeypatch.setattr(triton_probe, 'launch', launch)
    if outcome is None:
        monkeypatch.setattr(triton_launch, 'version', mock.Mock(side_effect=PackageNotFoundError('triton')))
    for _ in range(2):
        for dtype in (torch.float32, torch.bfloat16):
            assert triton_launch.unsupported(gpu, dtype) == [reason]
            assert runnable_backends(gpu, dtype)[0] == 'torch'
    assert launch.call_count == (outcome is not None)
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [f"Triton cannot run on cuda:0, 'torch' is used: {reason}"]
    x = mock.Mock(spec=torch.Tensor, device=gpu, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=f"scan backend 'triton' cannot run on .*{re.escape(reason[:20])}"):
        BACKENDS.resolve('triton', x)


def test_a_gpu_on_which_triton_works_is_tried_once(gpu, monkeypatch):
    from mmvisiongru.ops import triton_probe

    launch = mock.Mock(return_value=True)
    monkeypatch.setattr(triton_probe, 'launch', launch)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert (runnable_backends(gpu, dtype)[0] == 'triton') == (dtype != torch.float64)
    assert launch.call_count == 1


if __name__ == '__main__':
    faulthandler.enable()
    mend()
    print(json.dumps(measure_all(sys.argv[1])))
