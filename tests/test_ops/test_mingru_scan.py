"""The scan op: every backend against a float64 loop written here, and its place in the framework."""

import json
import subprocess
import sys
from functools import cache, partial
from itertools import chain, product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvisiongru.ops import mingru_scan, mingru_scan_2d, runnable_backends
from mmvisiongru.ops.mingru import torch_scan

# The only tolerances of this file: 'max' is max|got - ref| / max|ref|, 'rms' the same of root mean squares.
# 16-bit entries are dominated by the rounding of h (saved in the I/O dtype) and of the results.
TOLERANCE = {
    torch.float64: ('max', 1e-12),
    torch.float32: ('max', 2e-6),
    torch.bfloat16: ('rms', 4e-3),
    torch.float16: ('rms', 1e-3),
}
# 1 - z rounds to 1 in float32 where gate < -16: a long run of such gates drops a decay of up to L * 3e-8.
SATURATED = 2e-4

LENGTHS = (1, 2, 63, 64, 65, 784, 3136, 16384)
# The step loop makes several calls a token in each direction: L = 16384 would take most of the suite's time.
REFERENCE_MAX_LENGTH = 784
ROOT = Path(__file__).resolve().parents[2]
DEVICES = ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',)
PATHS = ('row', 'row_reverse', 'column', 'column_reverse')
TWO_PATHS = PATHS[:2]
OPS = torch.ops.mmvisiongru


def backends(*dtypes):
    """(device, backend, dtype) of everything that runs here, a backend of later too."""
    return [
        pytest.param(device, name, dtype, id=f'{device}-{name}-{str(dtype)[6:]}')
        for device in DEVICES
        for dtype in dtypes
        for name in runnable_backends(device, dtype)
    ]


each_backend = pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(torch.float32))


def coefficients(gate, hidden, candidate):
    """(1 - z_t, z_t c_t) of the definition h_t = (1 - z_t) h_{t-1} + z_t c_t."""
    c = hidden if candidate == 'linear' else torch.where(hidden < 0, torch.sigmoid(hidden), hidden + 0.5)
    return torch.sigmoid(-gate), torch.sigmoid(gate) * c


def loop(keep, add):
    """The recurrence one token at a time, for autograd to differentiate."""
    h, states = torch.zeros_like(keep[:, 0]), []
    for keep_t, add_t in zip(keep.unbind(1), add.unbind(1), strict=True):
        h = torch.addcmul(add_t, keep_t, h)
        states.append(h)
    return torch.stack(states, 1)


def loop_scan(gate, hidden, reverse=False, candidate='g'):
    if reverse:
        return loop_scan(gate.flip(1), hidden.flip(1), False, candidate).flip(1)
    return loop(*coefficients(gate, hidden, candidate))


def normal(*shape, dtype=torch.float32, number=3, seed=0):
    """Standard-normal gate, hidden and cotangent."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(number)]


def run(scan, *inputs, cotangent):
    """Output and gradient of each input of ``scan`` on leaves of the same layout."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = scan(*leaves)
    names = ('d_gate', 'd_hidden') if len(inputs) == 2 else ('d_projected',)
    return dict(
        zip(('out', *names), (out.detach(), *torch.autograd.grad(out, leaves, cotangent)), strict=True)
    )


@cache
def expected_of_all(shape):
    """Inputs and float64 results of every dtype, direction and candidate; one loop serves them all."""
    cases = list(product(TOLERANCE, (False, True), ('g', 'linear')))
    inputs = [normal(*shape, dtype=dtype, seed=shape[1]) for dtype, _, _ in cases]
    leaves = [[x.double().requires_grad_() for x in (gate, hidden)] for gate, hidden, _ in inputs]
    flip = [(lambda x: x.flip(1)) if reverse else (lambda x: x) for _, reverse, _ in cases]
    pairs = [coefficients(*map(f, leaf), case[2]) for f, leaf, case in zip(flip, leaves, cases, strict=True)]
    states = loop(*(torch.cat(x) for x in zip(*pairs, strict=True))).split(shape[0])
    outs = [f(h) for f, h in zip(flip, states, strict=True)]
    grads = torch.autograd.grad(outs, list(chain(*leaves)), [dy.double() for _, _, dy in inputs])
    return {
        case: (inputs[i], dict(out=outs[i].detach(), d_gate=grads[2 * i], d_hidden=grads[2 * i + 1]))
        for i, case in enumerate(cases)
    }


def expected(shape, dtype, reverse, candidate):
    """Inputs of ``dtype`` and what the loop makes of them in float64."""
    return expected_of_all(shape)[dtype, reverse, candidate]


def error(got, ref, measure):
    diff, ref = got.double().cpu() - ref.double().cpu(), ref.double().cpu()
    if measure == 'max':
        return (diff.abs().max() / ref.abs().max()).item()
    return (diff.square().mean() / ref.square().mean()).sqrt().item()


def assert_within(got, ref, dtype, bound=None):
    """Every tensor of ``got`` is finite, of ``dtype``, and within the table of ``ref``."""
    measure, limit = TOLERANCE[dtype]
    assert got.keys() == ref.keys()
    for name, x in got.items():
        assert x.dtype == dtype, name
        assert x.shape == ref[name].shape, name
        assert x.isfinite().all(), f'{name} is not finite'
        found = error(x, ref[name], measure)
        assert found <= (bound or limit), f'{name}: {measure} error {found:.2e} > {bound or limit:.0e}'


# ---- numbers


def test_the_parametrisation_is_not_empty():
    for dtype in TOLERANCE:
        assert {'torch', 'reference'} <= set(runnable_backends('cpu', dtype))


def lengths_of(backend):
    return [n for n in LENGTHS if backend != 'reference' or n <= REFERENCE_MAX_LENGTH]


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@pytest.mark.parametrize(
    ('device', 'backend', 'dtype', 'length'),
    [
        pytest.param(*case.values, n, id=f'{case.id}-{n}')
        for case in backends(*TOLERANCE)
        for n in lengths_of(case.values[1])
    ],
)
def test_precision(device, backend, dtype, length, reverse, candidate):
    (gate, hidden, cotangent), ref = expected((2, length, 3), dtype, reverse, candidate)
    scan = partial(mingru_scan, reverse=reverse, candidate=candidate, backend=backend)
    got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, dtype)


@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(torch.float64))
def test_every_length_up_to_several_chunks(device, backend, dtype):
    for length in range(1, 70):
        (gate, hidden, cotangent), ref = expected((1, length, 2), dtype, bool(length % 2), 'g')
        scan = partial(mingru_scan, reverse=bool(length % 2), backend=backend)
        got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
        assert_within(got, ref, dtype)


@each_backend
@pytest.mark.parametrize('shape', [(1, 100, 1), (3, 1, 1), (1, 50, 7), (2, 33, 144), (5, 17, 96)], ids=str)
def test_widths_and_batches(device, backend, dtype, shape):
    (gate, hidden, cotangent), ref = expected(shape, dtype, False, 'g')
    scan = partial(mingru_scan, backend=backend)
    got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, dtype)


@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(torch.bfloat16, torch.float16))
def test_state_is_wider_than_16_bits(device, backend, dtype):
    # A slow state (z = 2.5e-3) stalls when it is accumulated in bf16: an increment is below half an ulp.
    gate, hidden, cotangent = normal(2, 784, 3, dtype=dtype)
    gate = gate - 6
    wide = [x.double() for x in (gate, hidden, cotangent)]
    ref = run(loop_scan, *wide[:2], cotangent=wide[2])
    scan = partial(mingru_scan, backend=backend)
    got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, dtype)


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@pytest.mark.parametrize('kind', [20.0, -20.0, 50.0, -50.0, float('inf'), -float('inf'), 'mixed'], ids=str)
@each_backend
def test_saturated_gates(device, backend, dtype, kind, reverse, candidate):
    length = REFERENCE_MAX_LENGTH if backend == 'reference' else 3136
    gate, hidden, cotangent = normal(1, length, 4)
    values = torch.tensor([20.0, -20.0, 50.0, -50.0, float('inf'), -float('inf'), 0.0])
    if kind == 'mixed':
        gate = values[torch.randint(7, gate.shape, generator=torch.Generator().manual_seed(0))]
    else:
        # One ordinary token in seven gives the saturated ones a state to keep or to forget.
        gate = torch.where(torch.arange(length)[:, None] % 7 == 3, gate, kind)
    options = dict(reverse=reverse, candidate=candidate)
    wide = [x.double() for x in (gate, hidden, cotangent)]
    ref = run(partial(loop_scan, **options), *wide[:2], cotangent=wide[2])
    scan = partial(mingru_scan, backend=backend, **options)
    got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, dtype, bound=SATURATED if (gate < -16).any() else None)


@pytest.mark.parametrize('gate_value', [50.0, -50.0, float('inf'), -float('inf')])
@each_backend
def test_open_gates_pass_the_candidate_and_closed_ones_the_state(device, backend, dtype, gate_value):
    _, hidden, cotangent = (x.to(device) for x in normal(1, 130, 3))
    gate = torch.full_like(hidden, gate_value)
    got = run(partial(mingru_scan, candidate='linear', backend=backend), gate, hidden, cotangent=cotangent)
    zero = torch.zeros_like(hidden)
    ref = dict(out=hidden, d_hidden=cotangent) if gate_value > 0 else dict(out=zero, d_hidden=zero)
    for name, x in ref.items():
        # sigmoid(-50) is 2e-22.
        atol = max(TOLERANCE[dtype][1] * x.abs().max().item(), 1e-18)
        torch.testing.assert_close(got[name], x, rtol=0, atol=atol)
    torch.testing.assert_close(got['d_gate'], zero, rtol=0, atol=1e-18)


@each_backend
def test_candidate_at_zero_and_far_from_it(device, backend, dtype):
    # g has slope 1 from zero on (negative zero included) and 1/4 just before it.
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0, 1e4, -1e4])
    gate, _, cotangent = normal(1, 65, 8)
    hidden = values[torch.randint(8, gate.shape, generator=torch.Generator().manual_seed(0))]
    ref = run(loop_scan, gate.double(), hidden.double(), cotangent=cotangent.double())
    scan = partial(mingru_scan, backend=backend)
    got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, dtype)
    # Elementwise, as 1e4 hides the rest behind max|ref|.
    torch.testing.assert_close(got['d_hidden'].cpu().double(), ref['d_hidden'], rtol=1e-4, atol=2e-6)


def heinsen_log_space_scan(gate, hidden):
    """The parallel form of arXiv:2410.01201, appendix B: log h_t = A_t + logcumsumexp(log(z c) - A)_t.

    A_t is the cumulative sum of log(1 - z); it grows with L, and with it the ulp of everything added to it.
    """
    log_c = torch.where(hidden >= 0, torch.log(F.relu(hidden) + 0.5), -F.softplus(-hidden))
    log_keep = torch.cumsum(-F.softplus(gate), 1)
    return torch.exp(log_keep + torch.logcumsumexp(log_c - F.softplus(-gate) - log_keep, 1))


@pytest.mark.parametrize('device', DEVICES)
def test_log_space_scan_loses_the_gate_gradient_where_ours_does_not(device):
    (gate, hidden, cotangent), ref = expected((2, 16384, 3), torch.float32, False, 'g')
    inputs = [x.to(device) for x in (gate, hidden)]
    theirs, ours = (
        error(run(scan, *inputs, cotangent=cotangent.to(device))['d_gate'], ref['d_gate'], 'rms')
        for scan in (heinsen_log_space_scan, mingru_scan)
    )
    assert theirs > 0.05
    assert theirs > 1000 * ours


# ---- what one token may influence


@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@each_backend
def test_nan_stays_in_its_channel_and_its_future(device, backend, dtype, reverse):
    gate, hidden, cotangent = (x.to(device) for x in normal(2, 200, 5))
    scan = partial(mingru_scan, reverse=reverse, backend=backend)
    clean = run(scan, gate, hidden, cotangent=cotangent)
    gate[1, 90, 2] = float('nan')
    got = run(scan, gate, hidden, cotangent=cotangent)
    spoilt = torch.zeros_like(got['out'], dtype=torch.bool)
    spoilt[1, slice(None, 91) if reverse else slice(90, None), 2] = True
    torch.testing.assert_close(got['out'].isnan(), spoilt)
    torch.testing.assert_close(got['out'][~spoilt], clean['out'][~spoilt])
    for name in ('d_gate', 'd_hidden'):
        assert got[name][0].isfinite().all(), name
        assert got[name][1, :, [0, 1, 3, 4]].isfinite().all(), name


@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@each_backend
def test_cotangent_reaches_only_its_past(device, backend, dtype, reverse):
    gate, hidden, cotangent = (x.to(device) for x in normal(1, 200, 3))
    cotangent[:, :110] = 0 if not reverse else cotangent[:, :110]
    cotangent[:, 110:] = 0 if reverse else cotangent[:, 110:]
    cotangent[:, 110 if not reverse else 109, 1] = float('nan')
    got = run(partial(mingru_scan, reverse=reverse, backend=backend), gate, hidden, cotangent=cotangent)
    future = slice(None, 109) if reverse else slice(111, None)
    assert got['d_hidden'][:, future].isfinite().all()
    assert got['d_gate'][:, future].isfinite().all()
    assert got['d_hidden'][:, :, [0, 2]].isfinite().all()


@each_backend
def test_inputs_and_cotangent_are_left_alone(device, backend, dtype):
    tensors = [x.to(device) for x in normal(2, 70, 3)]
    before = [x.clone() for x in tensors]
    run(partial(mingru_scan, backend=backend), *tensors[:2], cotangent=tensors[2])
    for x, y in zip(tensors, before, strict=True):
        assert torch.equal(x, y)


@each_backend
def test_deterministic(device, backend, dtype):
    gate, hidden, cotangent = (x.to(device) for x in normal(2, 3136 if backend != 'reference' else 300, 7))
    first, second = (
        run(partial(mingru_scan, backend=backend), gate, hidden, cotangent=cotangent) for _ in range(2)
    )
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize('backend', runnable_backends('cpu'))
def test_any_number_of_threads(backend, threads):
    length = 784 if backend != 'reference' else 50
    (gate, hidden, cotangent), ref = expected((3, length, 37), torch.float32, True, 'g')
    (projected,) = normal(1, 28, length // 28, 2 * 2 * 5, number=1)
    for number in (1, 2, 5):
        threads(number)
        scan = partial(mingru_scan, reverse=True, backend=backend)
        assert_within(run(scan, gate, hidden, cotangent=cotangent), ref, torch.float32)
        got = mingru_scan_2d(projected, backend=backend)
        assert error(got, composed_2d(projected.double(), TWO_PATHS), 'max') <= TOLERANCE[torch.float32][1]


@pytest.fixture
def nan_in_new_memory():
    """Every fresh allocation of the framework holds NaN, so that an element left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1000).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings('ignore:.*does not have a deterministic implementation')
@pytest.mark.parametrize('length', [1, 2, 50, 64, 65, 100])
@each_backend
def test_every_element_is_written(nan_in_new_memory, device, backend, dtype, length):
    (gate, hidden, cotangent), ref = expected((2, length, 3), dtype, False, 'g')
    scan = partial(mingru_scan, backend=backend)
    got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, dtype)


@pytest.mark.filterwarnings('ignore:.*does not have a deterministic implementation')
@each_backend
def test_every_element_of_a_map_is_written(nan_in_new_memory, device, backend, dtype):
    (projected,) = normal(2, 5, 7, 4 * 2 * 3, number=1)
    (cotangent,) = normal(2, 5, 7, 4 * 3, number=1, seed=1)
    scan = partial(mingru_scan_2d, paths=PATHS, backend=backend)
    got = run(scan, projected.to(device), cotangent=cotangent.to(device))
    assert_within(got, run(composed_2d, projected.double(), cotangent=cotangent.double()), dtype)


# ---- layouts


def transposed(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def every_other_channel(x):
    return torch.stack((x, x), 3).flatten(2)[..., ::2]


def every_other_token(x):
    return torch.stack((x, x), 2).flatten(1, 2)[:, ::2]


def batch_last(x):
    return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def with_offset(x):
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


LAYOUTS = [transposed, every_other_channel, every_other_token, batch_last, with_offset]


@pytest.mark.parametrize('layout', LAYOUTS)
@each_backend
def test_noncontiguous(device, backend, dtype, layout):
    (gate, hidden, cotangent), ref = expected((2, 65, 3), dtype, True, 'g')
    scan = partial(mingru_scan, reverse=True, backend=backend)
    # detach keeps the strides, so the leaves of run() have them too.
    for strided in ((True, False, False), (False, True, False), (False, False, True), (True, True, True)):
        args = [
            layout(x.to(device)) if s else x.to(device)
            for x, s in zip((gate, hidden, cotangent), strided, strict=True)
        ]
        assert_within(run(scan, *args[:2], cotangent=args[2]), ref, dtype)


@each_backend
def test_halves_of_one_projection(device, backend, dtype):
    (gate, hidden, cotangent), ref = expected((2, 65, 3), dtype, False, 'g')
    both = torch.cat((hidden, gate), -1).to(device).requires_grad_()
    out = mingru_scan(*both.chunk(2, -1)[::-1], backend=backend)
    out.backward(cotangent.to(device))
    d_hidden, d_gate = both.grad.chunk(2, -1)
    assert_within(dict(out=out.detach(), d_gate=d_gate, d_hidden=d_hidden), ref, dtype)


@each_backend
def test_expanded_cotangent(device, backend, dtype):
    gate, hidden, _ = normal(2, 65, 3)
    ref = run(loop_scan, gate.double(), hidden.double(), cotangent=torch.ones(2, 65, 3, dtype=torch.float64))
    leaves = [x.to(device).requires_grad_() for x in (gate, hidden)]
    mingru_scan(*leaves, backend=backend).sum().backward()
    for leaf, name in zip(leaves, ('d_gate', 'd_hidden'), strict=True):
        assert error(leaf.grad, ref[name], 'max') <= TOLERANCE[dtype][1]
    for shape in ((2, 1, 1), (1, 65, 1), (1, 1, 3)):
        cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1)).expand(2, 65, 3)
        ref = run(loop_scan, gate.double(), hidden.double(), cotangent=cotangent.double())
        scan = partial(mingru_scan, backend=backend)
        assert_within(run(scan, *(x.detach() for x in leaves), cotangent=cotangent.to(device)), ref, dtype)


@pytest.mark.parametrize('shape', [(1, 65, 3), (2, 1, 3), (2, 65, 1)], ids=str)
@each_backend
def test_expanded_inputs(device, backend, dtype, shape):
    gate, hidden = (x.expand(2, 65, 3) for x in normal(*shape, number=2))
    (cotangent,) = normal(2, 65, 3, number=1, seed=1)
    ref = run(loop_scan, *(x.double() for x in (gate, hidden)), cotangent=cotangent.double())
    scan = partial(mingru_scan, backend=backend)
    got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, dtype)


@pytest.mark.parametrize('shape', [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@each_backend
def test_empty(device, backend, dtype, shape, reverse):
    gate, hidden, cotangent = (x.to(device) for x in normal(*shape))
    got = run(partial(mingru_scan, reverse=reverse, backend=backend), gate, hidden, cotangent=cotangent)
    assert all(x.shape == shape and x.dtype == dtype for x in got.values())


@pytest.mark.parametrize('shape', [(0, 4, 5, 24), (2, 0, 5, 24), (2, 4, 0, 24), (1, 4, 5, 0)], ids=str)
@each_backend
def test_empty_map(device, backend, dtype, shape):
    (projected,) = normal(*shape, number=1)
    cotangent = torch.zeros(*shape[:3], shape[3] // 2, device=device)
    got = run(
        partial(mingru_scan_2d, paths=PATHS, backend=backend), projected.to(device), cotangent=cotangent
    )
    assert got['out'].shape == cotangent.shape
    assert got['d_projected'].shape == shape


@pytest.mark.parametrize('wanted', ['gate', 'hidden'])
@each_backend
def test_gradient_of_one_input_alone(device, backend, dtype, wanted):
    (gate, hidden, cotangent), ref = expected((2, 65, 3), dtype, False, 'g')
    args = dict(gate=gate.to(device).clone(), hidden=hidden.to(device).clone())
    args[wanted].requires_grad_()
    mingru_scan(**args, backend=backend).backward(cotangent.to(device))
    assert error(args[wanted].grad, ref[f'd_{wanted}'], 'max') <= TOLERANCE[dtype][1]
    assert all(x.grad is None for name, x in args.items() if name != wanted)


def test_saves_three_tensors_of_the_size_of_the_input():
    gate, hidden, _ = normal(2, 784, 16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        mingru_scan(gate.requires_grad_(), hidden.requires_grad_())
    assert sum(saved) == 3 * gate.numel()


# ---- several paths over a map


def composed_2d(projected, paths=PATHS, candidate='g', scan=loop_scan):
    """mingru_scan_2d by transposing, flipping, splitting and concatenating."""
    B, H, W, _ = projected.shape
    outs = []
    for path, part in zip(paths, projected.chunk(len(paths), -1), strict=True):
        column, flip = path.startswith('column'), path.endswith('reverse')
        hidden, gate = (part.transpose(1, 2) if column else part).reshape(B, H * W, -1).chunk(2, -1)
        if flip:
            hidden, gate = hidden.flip(1), gate.flip(1)
        h = scan(gate, hidden, candidate=candidate)
        h = (h.flip(1) if flip else h).reshape((B, W, H, -1) if column else (B, H, W, -1))
        outs.append(h.transpose(1, 2) if column else h)
    return torch.cat(outs, -1)


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize(
    'paths',
    [*((p,) for p in PATHS), PATHS[:2], PATHS, ('column_reverse', 'row'), ('row', 'row')],
    ids=','.join,
)
@each_backend
def test_2d(device, backend, dtype, paths, candidate):
    for H, W in ((1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (7, 5), (12, 12)):
        (projected,) = normal(2, H, W, len(paths) * 2 * 3, number=1)
        (cotangent,) = normal(2, H, W, len(paths) * 3, number=1, seed=1)
        ref = run(
            partial(composed_2d, paths=paths, candidate=candidate),
            projected.double(),
            cotangent=cotangent.double(),
        )
        scan = partial(mingru_scan_2d, paths=paths, candidate=candidate, backend=backend)
        assert_within(run(scan, projected.to(device), cotangent=cotangent.to(device)), ref, dtype)
        # The two public functions agree as well, whatever the loop above says.
        same = run(
            partial(
                composed_2d, paths=paths, candidate=candidate, scan=partial(mingru_scan, backend=backend)
            ),
            projected.to(device),
            cotangent=cotangent.to(device),
        )
        assert_within(run(scan, projected.to(device), cotangent=cotangent.to(device)), same, dtype)


@cache
def expected_of_square_maps(side, paths):
    """As ``expected_of_all``, for maps; the dtypes are one batch."""
    projected = [normal(1, side, side, len(paths) * 2 * 2, number=1, dtype=dtype)[0] for dtype in TOLERANCE]
    cotangent = [
        normal(1, side, side, len(paths) * 2, number=1, dtype=dtype, seed=1)[0] for dtype in TOLERANCE
    ]
    wide = [torch.cat([x.double() for x in tensors]) for tensors in (projected, cotangent)]
    ref = run(partial(composed_2d, paths=paths), wide[0], cotangent=wide[1])
    return {
        dtype: (projected[i], cotangent[i], {name: x[i : i + 1] for name, x in ref.items()})
        for i, dtype in enumerate(TOLERANCE)
    }


@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(*TOLERANCE))
def test_2d_precision_at_stage_one_of_a_512_image(device, backend, dtype):
    paths = ('row', 'column_reverse')
    projected, cotangent, ref = expected_of_square_maps(28 if backend == 'reference' else 128, paths)[dtype]
    scan = partial(mingru_scan_2d, paths=paths, backend=backend)
    assert_within(run(scan, projected.to(device), cotangent=cotangent.to(device)), ref, dtype)


@each_backend
def test_2d_noncontiguous(device, backend, dtype):
    (projected,) = normal(2, 5, 7, 24, number=1)
    (cotangent,) = normal(2, 5, 7, 12, number=1, seed=1)
    ref = run(composed_2d, projected.double(), cotangent=cotangent.double())
    scan = partial(mingru_scan_2d, paths=PATHS, backend=backend)
    for order, back in (((0, 3, 1, 2), (0, 2, 3, 1)), ((0, 2, 1, 3), (0, 2, 1, 3))):
        x, dy = (t.to(device).permute(order).contiguous().permute(back) for t in (projected, cotangent))
        assert not x.is_contiguous()
        assert_within(run(scan, x, cotangent=dy), ref, dtype)
    x = projected.to(device).requires_grad_()
    scan(x).sum().backward()
    ref = run(composed_2d, projected.double(), cotangent=torch.ones(2, 5, 7, 12, dtype=torch.float64))
    assert error(x.grad, ref['d_projected'], 'max') <= TOLERANCE[dtype][1]


@pytest.mark.parametrize('path', PATHS)
@each_backend
def test_2d_strips_that_hand_on_their_state(device, backend, dtype, path):
    (projected,) = normal(2, 7, 5, 6, number=1)
    whole = composed_2d(projected.double(), (path,))
    column, flip = path.startswith('column'), path.endswith('reverse')
    dim = 2 if column else 1
    order = slice(None, None, -1 if flip else 1)
    state, outs = None, []
    for strip in projected.to(device).split([3, 1, projected.size(dim) - 4], dim)[order]:
        h = mingru_scan_2d(strip, paths=(path,), backend=backend, state=state)
        outs.append(h)
        state = h[:, 0, :1] if flip else h[:, -1, -1:]
    assert_within(dict(out=torch.cat(outs[order], dim)), dict(out=whole), dtype)


@each_backend
def test_2d_each_path_has_its_own_state(device, backend, dtype):
    (projected,) = normal(2, 4, 3, 16, number=1)
    (state,) = normal(2, 2, 4, number=1, seed=1)
    got = mingru_scan_2d(projected.to(device), backend=backend, state=state.to(device))
    # A state is what a token before the first one, with its gate open, would leave behind.
    hidden, gate = projected.flatten(1, 2).unflatten(2, (2, 2, 4)).double().unbind(3)
    z = torch.sigmoid(gate)
    g = torch.where(hidden < 0, torch.sigmoid(hidden), hidden + 0.5)
    ones = torch.ones_like(z[:, :1, 0])
    first = torch.cat((state[:, :1].double(), (z * g)[:, :, 0]), 1)
    last = torch.cat(((z * g)[:, :, 1], state[:, 1:].double()), 1)
    forward = loop(torch.cat((ones, 1 - z[:, :, 0]), 1), first)[:, 1:]
    reverse = loop(torch.cat((1 - z[:, :, 1], ones), 1).flip(1), last.flip(1)).flip(1)[:, :-1]
    ref = torch.cat((forward, reverse), -1).unflatten(1, (4, 3))
    assert_within(dict(out=got), dict(out=ref), dtype)


@each_backend
def test_2d_state_has_no_gradient(device, backend, dtype):
    (projected,) = normal(2, 4, 3, 16, number=1)
    projected, state = projected.to(device), torch.ones(2, 2, 4, device=device)
    for x, h in ((leaf(projected), state), (projected, leaf(state))):
        with pytest.raises(ValueError, match='no gradient'):
            mingru_scan_2d(x, backend=backend, state=h)


@each_backend
def test_2d_deterministic_and_takes_a_list_of_paths(device, backend, dtype):
    (projected,) = normal(2, 9, 7, 48, number=1)
    (cotangent,) = normal(2, 9, 7, 24, number=1, seed=1)
    first, second = (
        run(
            partial(mingru_scan_2d, paths=paths, backend=backend),
            projected.to(device),
            cotangent=cotangent.to(device),
        )
        for paths in (PATHS, list(PATHS))
    )
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


def test_2d_default_is_both_row_directions():
    (projected,) = normal(1, 3, 5, 8, number=1)
    assert torch.equal(mingru_scan_2d(projected), mingru_scan_2d(projected, paths=('row', 'row_reverse')))


# ---- the framework


def leaf(x):
    return x.detach().clone().requires_grad_()


def op_samples():
    gate, hidden, grad = normal(2, 9, 3)
    strided = [transposed(x) for x in (gate, hidden)]
    h = mingru_scan(gate, hidden)
    (projected,) = normal(2, 3, 4, 24, number=1)
    states = mingru_scan_2d(projected, paths=PATHS)
    names = ','.join(PATHS)
    return {
        'mingru_scan': [
            (leaf(gate), leaf(hidden), False, 'g', 'auto'),
            (leaf(gate.double()), leaf(hidden.double()), True, 'linear', 'auto'),
            (*(x.detach().requires_grad_() for x in strided), True, 'g', 'auto'),
            (gate[:, :0], hidden[:, :0], False, 'g', 'auto'),
        ],
        'mingru_scan_backward': [
            (grad, gate, hidden, h, False, 'g', 'auto'),
            (grad[:1, :1, :1].expand(2, 9, 3), *strided, h, True, 'linear', 'auto'),
        ],
        'mingru_scan_2d': [
            (leaf(projected), names, 'g', 'auto'),
            (leaf(projected.transpose(1, 2)), 'row,row_reverse', 'linear', 'auto'),
            (projected, names, 'g', 'auto', torch.ones(2, 4, 3)),
        ],
        'mingru_scan_2d_backward': [
            (torch.ones_like(states), projected, states, names, 'g', 'auto'),
            (torch.ones(()).expand(states.shape), projected, states, names, 'linear', 'auto'),
        ],
    }


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', list(op_samples()))
def test_opcheck(name, device):
    for args in op_samples()[name]:
        args = [
            x.detach().to(device).requires_grad_(x.requires_grad) if torch.is_tensor(x) else x for x in args
        ]
        torch.library.opcheck(getattr(OPS, name).default, tuple(args))


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(torch.float64))
def test_gradcheck(device, backend, dtype, candidate):
    gate, hidden = (x.to(device).requires_grad_() for x in normal(2, 7, 2, dtype=dtype, number=2))
    for reverse in (False, True):
        scan = partial(mingru_scan, reverse=reverse, candidate=candidate, backend=backend)
        assert torch.autograd.gradcheck(scan, (gate, hidden))
    (projected,) = normal(1, 3, 4, 16, dtype=dtype, number=1)
    scan = partial(mingru_scan_2d, paths=PATHS, candidate=candidate, backend=backend)
    assert torch.autograd.gradcheck(scan, (projected.to(device).requires_grad_(),))


def test_second_derivative_is_refused_not_wrong():
    gate, hidden, cotangent = normal(1, 5, 2, dtype=torch.float64)
    gate.requires_grad_()
    (grad,) = torch.autograd.grad(mingru_scan(gate, hidden), gate, cotangent, create_graph=True)
    with pytest.raises(RuntimeError, match='autograd'):
        grad.sum().backward()


class Scans(nn.Module):
    """Both public functions, with something for a compiler to do around them."""

    def forward(self, gate, hidden):
        h = mingru_scan(gate * 1.5, hidden.tanh(), reverse=True)
        B, L, D = h.shape
        x = torch.cat((h, gate, hidden, h + 1), -1).view(B, 1, L, 4 * D)
        return mingru_scan_2d(x, candidate='linear').sin()


def scans_by_loop(gate, hidden):
    h = loop_scan(gate * 1.5, hidden.tanh(), reverse=True)
    x = torch.cat((h, gate, hidden, h + 1), -1)[:, None]
    return composed_2d(x, ('row', 'row_reverse'), 'linear').sin()


def assert_compiled_matches(compiled, device, lengths):
    for length in lengths:
        gate, hidden, _ = normal(2, length, 3, seed=length)
        (cotangent,) = normal(2, 1, length, 6, number=1)
        ref = run(scans_by_loop, gate.double(), hidden.double(), cotangent=cotangent.double())
        got = run(compiled, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
        assert_within(got, ref, torch.float32)


@pytest.mark.parametrize('device', DEVICES)
def test_compile_fullgraph(device):
    torch._dynamo.reset()
    assert_compiled_matches(torch.compile(Scans(), fullgraph=True, backend='aot_eager'), device, [65])


@pytest.mark.parametrize('device', DEVICES)
def test_compile_dynamic_length_once(device):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(Scans(), fullgraph=True, dynamic=True, backend=counter)
    assert_compiled_matches(compiled, device, [65, 40, 17])
    assert counter.frame_count == 1


# A cold C++ compilation of the elementwise code around the scan.
@pytest.mark.long
@pytest.mark.parametrize('device', DEVICES)
def test_compile_inductor(device):
    torch._dynamo.reset()
    assert_compiled_matches(torch.compile(Scans(), fullgraph=True), device, [65])


def test_export():
    gate, hidden, _ = normal(2, 65, 3)
    length = torch.export.Dim('length', min=2, max=4096)
    program = torch.export.export(
        Scans(), (gate, hidden), dynamic_shapes=dict(gate={1: length}, hidden={1: length})
    )
    targets = [node.target for node in program.graph.nodes if node.op == 'call_function']
    assert targets.count(OPS.mingru_scan.default) == 1
    assert targets.count(OPS.mingru_scan_2d.default) == 1
    for n in (65, 12, 200):
        gate, hidden, _ = normal(2, n, 3, seed=n)
        ref = scans_by_loop(gate.double(), hidden.double())
        assert error(program.module()(gate, hidden), ref, 'max') <= TOLERANCE[torch.float32][1]


def test_autocast_leaves_the_scan_in_the_type_it_is_given():
    (gate, hidden, cotangent), _ = expected((2, 65, 3), torch.float32, False, 'g')
    plain = run(mingru_scan, gate, hidden, cotangent=cotangent)
    with torch.autocast('cpu', torch.bfloat16):
        cast = run(mingru_scan, gate, hidden, cotangent=cotangent)
    for name, x in plain.items():
        assert torch.equal(x, cast[name]), name


@pytest.mark.parametrize('backend', runnable_backends('cpu', torch.bfloat16))
def test_autocast_bf16(backend):
    torch.manual_seed(0)
    linear = nn.Linear(8, 6, bias=False)
    x, cotangent = torch.randn(2, 65, 8), torch.randn(2, 65, 3).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        projected = linear(x)
        projected.retain_grad()
        out = mingru_scan(*projected.chunk(2, -1), backend=backend)
    assert out.dtype == projected.dtype == torch.bfloat16
    out.backward(cotangent)
    assert linear.weight.grad.dtype == torch.float32
    gate, hidden = projected.detach().double().chunk(2, -1)
    ref = run(loop_scan, gate, hidden, cotangent=cotangent.double())
    d_gate, d_hidden = projected.grad.chunk(2, -1)
    assert_within(dict(out=out.detach(), d_gate=d_gate, d_hidden=d_hidden), ref, torch.bfloat16)


def test_inference_mode_and_meta_tensors():
    (gate, hidden, _), ref = expected((2, 65, 3), torch.float32, False, 'g')
    with torch.inference_mode():
        assert error(mingru_scan(gate, hidden), ref['out'], 'max') <= TOLERANCE[torch.float32][1]
    for dtype in TOLERANCE:
        out = mingru_scan(*(x.to('meta', dtype) for x in (gate, hidden)))
        assert (out.shape, out.dtype, out.device.type) == (gate.shape, dtype, 'meta')
    out = mingru_scan_2d(torch.empty(2, 5, 7, 48, device='meta'), paths=PATHS)
    assert (out.shape, out.device.type) == ((2, 5, 7, 24), 'meta')


def counted_flops(fn):
    with FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def test_flop_counter_sees_the_scan():
    gate, hidden, cotangent = normal(2, 50, 3)
    # (1 - z) h + z c is two multiplications and additions an element, as framework formulas count them.
    assert counted_flops(lambda: mingru_scan(gate, hidden)) == 4 * gate.numel()
    (projected,) = normal(2, 5, 10, 4 * 2 * 3, number=1)
    assert counted_flops(lambda: mingru_scan_2d(projected, paths=PATHS)) == 4 * 4 * gate.numel()
    # As for a matrix product, the backward pass costs two forward ones.
    both = counted_flops(lambda: run(mingru_scan, gate, hidden, cotangent=cotangent))
    assert both == 3 * 4 * gate.numel()
    dy = torch.ones(2, 5, 10, 12)
    both = counted_flops(lambda: run(partial(mingru_scan_2d, paths=PATHS), projected, cotangent=dy))
    assert both == 3 * 4 * 4 * gate.numel()


# ---- choice and errors


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
    # In a fresh process: the op is usable where no OpenMMLab library is installed.
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['mmengine', 'mmcv', 'mmseg', 'mmpretrain']));"
        'import torch; from mmvisiongru.ops import mingru_scan;'
        'print(mingru_scan(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)).flatten().tolist())'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    # z = 1/2 and g(0) = 1/2: h_1 = 1/4, h_2 = 1/8 + 1/4.
    assert json.loads(done.stdout.splitlines()[-1]) == [0.25, 0.375]
