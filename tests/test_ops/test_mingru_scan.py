"""The scan of minGRU: every backend against a float64 loop, and what one token may influence."""

from functools import cache, partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from mmvisiongru.ops import mingru_scan, mingru_scan_2d, runnable_backends
from tests.harness.scans import (
    DEVICES,
    PATHS,
    ROWS,
    TOLERANCE,
    assert_within,
    backends,
    composed_2d,
    each_backend,
    error,
    expected,
    expected_of_each,
    loop_scan,
    normal,
    run,
)

# 1 - z rounds to 1 in float32 where gate < -16: a long run of such gates drops a decay of up to L * 3e-8.
SATURATED = 2e-4

LENGTHS = (1, 2, 63, 64, 65, 784, 3136, 16384)
# The step loop makes several calls a token in each direction: L = 16384 would take most of the suite's time.
REFERENCE_MAX_LENGTH = 784


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


GATES = (20.0, -20.0, 50.0, -50.0, float('inf'), -float('inf'))


def saturated(kind, length):
    """Gate, hidden and cotangent where most gates are `kind`, or any of them in a mixture."""
    gate, hidden, cotangent = normal(1, length, 4)
    if kind == 'mixed':
        values = torch.tensor([*GATES, 0.0])
        gate = values[torch.randint(7, gate.shape, generator=torch.Generator().manual_seed(0))]
    else:
        # One ordinary token in seven gives the saturated ones a state to keep or to forget.
        gate = torch.where(torch.arange(length)[:, None] % 7 == 3, gate, kind)
    return gate, hidden, cotangent


@cache
def expected_of_saturated(length):
    """Inputs and float64 results of every kind, direction and candidate."""
    cases = list(product((*GATES, 'mixed'), (False, True), ('g', 'linear')))
    inputs = [saturated(kind, length) for kind, _, _ in cases]
    results = expected_of_each([(*x, *case[1:]) for x, case in zip(inputs, cases, strict=True)])
    return dict(zip(cases, zip(inputs, results, strict=True), strict=True))


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@pytest.mark.parametrize('kind', [*GATES, 'mixed'], ids=str)
@each_backend
def test_saturated_gates(device, backend, dtype, kind, reverse, candidate):
    length = REFERENCE_MAX_LENGTH if backend == 'reference' else 3136
    (gate, hidden, cotangent), ref = expected_of_saturated(length)[kind, reverse, candidate]
    scan = partial(mingru_scan, backend=backend, reverse=reverse, candidate=candidate)
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
def test_deterministic_and_inputs_are_left_alone(device, backend, dtype):
    tensors = [x.to(device) for x in normal(2, 3136 if backend != 'reference' else 300, 7)]
    before = [x.clone() for x in tensors]
    scan = partial(mingru_scan, backend=backend)
    first, second = (run(scan, *tensors[:2], cotangent=tensors[2]) for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert all(map(torch.equal, tensors, before))


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
        assert error(got, composed_2d(projected.double(), ROWS), 'max') <= TOLERANCE[torch.float32][1]


@pytest.mark.filterwarnings('ignore:.*does not have a deterministic implementation')
@each_backend
def test_every_element_is_written(nan_in_new_memory, device, backend, dtype):
    for length in (1, 2, 50, 64, 65, 100):
        (gate, hidden, cotangent), ref = expected((2, length, 3), dtype, False, 'g')
        scan = partial(mingru_scan, backend=backend)
        got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
        assert_within(got, ref, dtype)
    projected, cotangent = (normal(2, 5, 7, 4 * n * 3, number=1)[0] for n in (2, 1))
    scan = partial(mingru_scan_2d, paths=PATHS, backend=backend)
    got = run(scan, projected.to(device), cotangent=cotangent.to(device))
    assert_within(got, run(composed_2d, projected.double(), cotangent=cotangent.double()), dtype)
