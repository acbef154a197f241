"""The scan of minGRU: every backend against a float64 loop, over sequences and maps, of any layout."""

import math
from functools import cache, partial
from itertools import product

import pytest
import torch

from mmvisiongru.ops import mingru_scan, mingru_scan_2d, runnable_backends
from mmvisiongru.ops.scan_paths import PATHS as KNOWN
from tests.harness.scans import (
    PATHS,
    ROWS,
    TOLERANCE,
    assert_within,
    backends,
    by_loop,
    composed_2d,
    each_backend,
    error,
    expected,
    loop,
    loop_scan,
    normal,
    run,
    transposed,
)

SHAPES = [*((2, length, 3) for length in (1, 2, 63, 64, 65, 784)), (3, 1, 1), (2, 33, 144), (5, 17, 96)]
# 1 - z rounds to 1 in float32 where gate < -16: a long run of such gates drops a decay of up to L * 3e-8.
SATURATED = 2e-4
DIRECTIONS = pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])


def assert_right(device, backend, dtype, shape, reverse=False, candidate='g'):
    (gate, hidden, cotangent), ref = expected(shape, dtype, reverse, candidate)
    scan = partial(mingru_scan, reverse=reverse, candidate=candidate, backend=backend)
    assert_within(run(scan, gate, hidden, cotangent=cotangent, device=device), ref, dtype)


@pytest.mark.filterwarnings('ignore:.*does not have a deterministic implementation')
@pytest.mark.usefixtures('nan_in_new_memory')
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(*TOLERANCE))
def test_precision(device, backend, dtype, shape):
    for reverse, candidate in product((False, True), ('g', 'linear')):
        assert_right(device, backend, dtype, shape, reverse, candidate)


@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(*TOLERANCE))
def test_precision_of_long_sequences(device, backend, dtype):
    # The step loop makes several calls a token in each direction.
    if backend != 'reference':
        assert_right(device, backend, dtype, (2, 16384, 3), reverse=dtype != torch.float32)


@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(torch.float64))
def test_every_length_up_to_several_chunks(device, backend, dtype):
    for length in range(1, 70):
        assert_right(device, backend, dtype, (1, length, 2), reverse=bool(length % 2))


@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(torch.bfloat16, torch.float16))
def test_state_is_wider_than_16_bits(device, backend, dtype):
    # A slow state (z = 2.5e-3) stalls when it is accumulated in bf16: an increment is below half an ulp.
    gate, hidden, cotangent = normal(2, 784, 3, dtype=dtype)
    tensors = gate - 6, hidden, cotangent
    got = run(partial(mingru_scan, backend=backend), *tensors[:2], cotangent=cotangent, device=device)
    assert_within(got, by_loop(*tensors), dtype)


# ---- extreme values


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@DIRECTIONS
@each_backend
def test_saturated_gates(device, backend, dtype, reverse, candidate):
    length, kinds = 784 if backend == 'reference' else 3136, (20, -20, 50, -50, math.inf, -math.inf, 'mixed')
    gate, hidden, cotangent = (x.unflatten(2, (7, 4)) for x in normal(1, length, 28))
    values = torch.tensor([*kinds[:-1], 0.0])
    mixed = values[torch.randint(7, (1, length, 4), generator=torch.Generator().manual_seed(0))]
    # One ordinary token in seven gives the saturated ones a state to keep or to forget.
    ordinary = torch.arange(length)[:, None, None] % 7 == 3
    gate = torch.where(ordinary, gate, values[:, None])
    gate[:, :, 6] = mixed
    tensors = [x.flatten(2) for x in (gate, hidden, cotangent)]
    options = dict(reverse=reverse, candidate=candidate)
    scan = partial(mingru_scan, backend=backend, **options)
    got = run(scan, *tensors[:2], cotangent=tensors[2], device=device)
    ref = by_loop(*tensors, **options)
    for n, kind in enumerate(kinds):
        one, other = (
            {name: x.unflatten(2, (7, 4))[:, :, n] for name, x in found.items()} for found in (got, ref)
        )
        assert_within(one, other, dtype, bound=SATURATED if kind == 'mixed' or kind < -16 else None)


@each_backend
def test_candidate_at_zero_and_far_from_it(device, backend, dtype):
    # g has slope 1 from zero on (negative zero included) and 1/4 just before it.
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0, 1e4, -1e4])
    gate, _, cotangent = normal(1, 65, 8)
    hidden = values[torch.randint(8, gate.shape, generator=torch.Generator().manual_seed(0))]
    ref = by_loop(gate, hidden, cotangent)
    got = run(partial(mingru_scan, backend=backend), gate, hidden, cotangent=cotangent, device=device)
    assert_within(got, ref, dtype)
    # Elementwise, as 1e4 hides the rest behind max|ref|.
    torch.testing.assert_close(got['d_hidden'].cpu().double(), ref['d_hidden'], rtol=1e-4, atol=2e-6)


@each_backend
def test_gradient_of_the_gate_keeps_its_relative_accuracy(device, backend, dtype):
    """Far from zero, 1 - z has no digit left, and sigmoid(-gate) has all of them."""
    # Candidates change their sign from token to token, and all cotangents are positive: neither in c - h nor
    # in s does anything cancel, so what is left of an error comes from z (1 - z).
    generator = torch.Generator().manual_seed(0)
    gate, hidden, cotangent = (torch.rand(1, 784, 241, generator=generator) + 1 for _ in range(3))
    # Each channel has gates of its own size.
    gate += torch.linspace(-31, 28, 241)
    hidden[:, ::2] *= -1
    scan = partial(mingru_scan, candidate='linear', backend=backend)
    got = run(scan, gate, hidden, cotangent=cotangent, device=device)['d_gate'].cpu()
    # Autograd of the loop would cancel digits itself.
    scan, wide = partial(scan, backend='reference'), [x.double() for x in (gate, hidden, cotangent)]
    ref = run(scan, *wide[:2], cotangent=wide[2])['d_gate']
    matters = ref.abs() > 1e-30
    assert matters.float().mean() > 0.95
    assert ((got - ref)[matters] / ref[matters]).abs().max() < 1e-5


@each_backend
def test_infinite_candidates_stay_infinite_and_large_ones_finite(device, backend, dtype):
    scan = partial(mingru_scan, candidate='linear', backend=backend)
    gate, hidden = torch.zeros(1, 5, 2, device=device), torch.ones(1, 5, 2, device=device)
    hidden[:, 1] = torch.tensor([math.inf, -math.inf])
    out = scan(gate, hidden)
    assert (out[:, 1:] == hidden[:, 1:2]).all()
    assert (out[:, 0] == 0.5).all()
    # c - h is twice the largest number, the mean of the two is not.
    largest = torch.finfo(torch.float32).max
    hidden = torch.tensor([1.0, -1.0, 1.0, -1.0])[None, :, None].expand(1, 4, 2) * largest
    gate = torch.full_like(hidden, 3.0)
    ref = mingru_scan(gate.double(), hidden.double(), candidate='linear', backend='reference')
    out = scan(gate.to(device), hidden.to(device)).cpu().double()
    torch.testing.assert_close(out / largest, ref / largest, rtol=0, atol=1e-6)


# ---- influence


@DIRECTIONS
@each_backend
def test_nan_stays_in_its_channel_and_its_future(device, backend, dtype, reverse):
    gate, hidden, cotangent = (x.to(device) for x in normal(2, 200, 5))
    scan = partial(mingru_scan, reverse=reverse, backend=backend)
    clean = run(scan, gate, hidden, cotangent=cotangent, device=device)
    gate[1, 90, 2] = math.nan
    got = run(scan, gate, hidden, cotangent=cotangent, device=device)
    spoilt = torch.zeros_like(got['out'], dtype=torch.bool)
    spoilt[1, slice(None, 91) if reverse else slice(90, None), 2] = True
    torch.testing.assert_close(got['out'].isnan(), spoilt)
    torch.testing.assert_close(got['out'][~spoilt], clean['out'][~spoilt])
    for name in ('d_gate', 'd_hidden'):
        assert got[name][0].isfinite().all(), name
        assert got[name][1, :, [0, 1, 3, 4]].isfinite().all(), name


@each_backend
def test_deterministic_and_inputs_are_left_alone(device, backend, dtype):
    tensors = [x.to(device) for x in normal(2, 3136 if backend != 'reference' else 300, 7)]
    before = [x.clone() for x in tensors]
    scan = partial(mingru_scan, backend=backend)
    first, second = (run(scan, *tensors[:2], cotangent=tensors[2], device=device) for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert all(map(torch.equal, tensors, before))


# The reference starts no threads of its own.
@pytest.mark.parametrize('backend', runnable_backends('cpu')[:-1])
def test_any_number_of_threads(backend, threads):
    # Both are so large that there is work for several.
    (projected,) = normal(1, 28, 40, 2 * 2 * 37, number=1)
    ref = composed_2d(projected.double(), ROWS)
    for number in (1, 2, 5):
        threads(number)
        assert_right('cpu', backend, torch.float32, (3, 784, 37), reverse=True)
        got = mingru_scan_2d(projected, backend=backend)
        assert error(got, ref, 'max') <= TOLERANCE[torch.float32][1]


# ---- tensors of any strides and shapes, empty ones too


LAYOUTS = {
    'transposed': transposed,
    'every other channel': lambda x: torch.stack((x, x), 3).flatten(2)[..., ::2],
    'every other token': lambda x: torch.stack((x, x), 2).flatten(1, 2)[:, ::2],
    'batch last': lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    'with an offset': lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    'one image': lambda x: x[:1].expand_as(x),
    'one token': lambda x: x[:, :1].expand_as(x),
    'one channel': lambda x: x[..., :1].expand_as(x),
    'one number': lambda x: x[:1, :1, :1].expand_as(x),
}


@pytest.mark.parametrize('layout', LAYOUTS)
@each_backend
def test_strides(device, backend, dtype, layout):
    scan = partial(mingru_scan, reverse=True, backend=backend)
    for strided in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        pairs = zip(normal(2, 65, 3), strided, strict=True)
        tensors = [LAYOUTS[layout](x.to(device)) if change else x.to(device) for x, change in pairs]
        # detach keeps the strides, so the leaves of run() have them too.
        got = run(scan, *tensors[:2], cotangent=tensors[2], device=device)
        assert_within(got, by_loop(*(x.cpu() for x in tensors), reverse=True), dtype)


@pytest.mark.parametrize('empty', range(3))
@each_backend
def test_empty(device, backend, dtype, empty):
    shape = [0 if n == empty else size for n, size in enumerate((2, 5, 3))]
    for reverse in (False, True):
        gate, hidden, cotangent = normal(*shape)
        scan = partial(mingru_scan, reverse=reverse, backend=backend)
        got = run(scan, gate, hidden, cotangent=cotangent, device=device)
        assert all(list(x.shape) == shape and x.dtype == dtype for x in got.values())
    sides, width = [0 if n == empty else 4 for n in range(2)], 0 if empty == 2 else 3 * len(PATHS)
    projected, cotangent = (torch.zeros(1, *sides, n * width) for n in (2, 1))
    got = run(
        partial(mingru_scan_2d, paths=PATHS, backend=backend), projected, cotangent=cotangent, device=device
    )
    assert (got['out'].shape, got['d_projected'].shape) == (cotangent.shape, projected.shape)


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


# ---- maps, along several paths


def expected_of(projected, cotangent, **options):
    return run(partial(composed_2d, **options), projected.double(), cotangent=cotangent.double())


@cache
def maps(shape, dtype=torch.float32, paths=PATHS, candidate='g'):
    """Projected map and cotangent of (B, H, W), and what the loop makes of them in float64."""
    (projected,) = normal(*shape, len(paths) * 2 * 3, number=1, dtype=dtype)
    (cotangent,) = normal(*shape, len(paths) * 3, number=1, dtype=dtype, seed=1)
    return projected, cotangent, expected_of(projected, cotangent, paths=paths, candidate=candidate)


def assert_right_2d(device, backend, dtype, shape, paths=PATHS, candidate='g'):
    projected, cotangent, ref = maps(shape, dtype, paths, candidate)
    scan = partial(mingru_scan_2d, paths=paths, candidate=candidate, backend=backend)
    assert_within(run(scan, projected, cotangent=cotangent, device=device), ref, dtype)


ORDERS = dict(
    row='0 1 2 3 4 5', row_reverse='5 4 3 2 1 0', column='0 3 1 4 2 5', column_reverse='5 2 4 1 3 0'
)


@pytest.mark.parametrize('path', ORDERS)
def test_orders_of_two_rows_of_three_tokens(path):
    (projected,) = normal(1, 2, 3, 8, number=1, dtype=torch.float64)
    order = torch.tensor([int(n) for n in ORDERS[path].split()])
    hidden, gate = projected.flatten(1, 2)[:, order].chunk(2, -1)
    ref = loop_scan(gate, hidden)[:, order.argsort()].view(1, 2, 3, 4)
    torch.testing.assert_close(mingru_scan_2d(projected, paths=(path,)), ref)


@pytest.mark.filterwarnings('ignore:.*does not have a deterministic implementation')
@pytest.mark.usefixtures('nan_in_new_memory')
@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize(
    'paths', [*((p,) for p in PATHS), ROWS, PATHS, ('column_reverse', 'row'), ('row', 'row')], ids=','.join
)
@each_backend
def test_2d(device, backend, dtype, paths, candidate):
    for size in ((1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (7, 5), (12, 12)):
        assert_right_2d(device, backend, dtype, (2, *size), paths, candidate)


@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(*TOLERANCE))
def test_2d_precision_at_stage_one_of_a_256_image(device, backend, dtype):
    side = 28 if backend == 'reference' else 64
    assert_right_2d(device, backend, dtype, (1, side, side), ('row', 'column_reverse'))


@each_backend
def test_2d_noncontiguous(device, backend, dtype):
    projected, cotangent, ref = maps((2, 5, 7))
    scan = partial(mingru_scan_2d, paths=PATHS, backend=backend)
    for order, back in (((0, 3, 1, 2), (0, 2, 3, 1)), ((0, 2, 1, 3), (0, 2, 1, 3))):
        x, dy = (t.permute(order).contiguous().permute(back) for t in (projected, cotangent))
        assert not x.is_contiguous()
        assert_within(run(scan, x, cotangent=dy, device=device), ref, dtype)
    ones = torch.ones(()).expand(cotangent.shape)
    got = run(scan, projected, cotangent=ones, device=device)
    assert_within(got, expected_of(projected, ones), dtype)


@pytest.mark.parametrize('path', PATHS)
@each_backend
def test_2d_tiles_that_pass_on_their_state(device, backend, dtype, path):
    (projected,) = normal(2, 7, 5, 6, number=1)
    whole = composed_2d(projected.double(), (path,))
    dim, order = (2 if KNOWN[path].column else 1), slice(None, None, -1 if KNOWN[path].reverse else 1)
    state, outs = None, []
    for tile in projected.to(device).split([3, 1, projected.size(dim) - 4], dim)[order]:
        h = mingru_scan_2d(tile, paths=(path,), backend=backend, state=state)
        outs.append(h)
        state = h[:, 0, :1] if KNOWN[path].reverse else h[:, -1, -1:]
    assert_within(dict(out=torch.cat(outs[order], dim)), dict(out=whole), dtype)


@each_backend
def test_2d_each_path_has_its_own_state(device, backend, dtype):
    (projected,) = normal(2, 4, 3, 16, number=1)
    (state,) = normal(2, 2, 4, number=1, seed=1)
    got = mingru_scan_2d(projected.to(device), backend=backend, state=state.to(device))
    # A state is what a token before the first one, with its gate open, would leave behind.
    hidden, gate = projected.flatten(1, 2).unflatten(2, (2, 2, 4)).double().unbind(3)
    z = torch.sigmoid(gate)
    add = z * torch.where(hidden < 0, torch.sigmoid(hidden), hidden + 0.5)
    refs = []
    for path, flip in enumerate(([], [1])):
        keep, tokens = (x[:, :, path].flip(flip) for x in (1 - z, add))
        first = state[:, path : path + 1].double()
        h = loop(torch.cat((torch.ones_like(first), keep), 1), torch.cat((first, tokens), 1))[:, 1:]
        refs.append(h.flip(flip))
    assert_within(dict(out=got), dict(out=torch.cat(refs, -1).unflatten(1, (4, 3))), dtype)


def test_2d_state_has_no_gradient():
    (projected,), state = normal(2, 4, 3, 16, number=1), torch.ones(2, 2, 4)
    for leaf in (projected, state):
        leaf.requires_grad_()
        with pytest.raises(ValueError, match='no gradient'):
            mingru_scan_2d(projected, state=state)
        leaf.requires_grad_(False)


def test_2d_takes_a_list_of_paths_and_by_default_both_row_directions():
    (projected,) = normal(2, 3, 5, 2 * 2 * 3, number=1)
    found = mingru_scan_2d(projected), mingru_scan_2d(projected, paths=list(ROWS))
    assert all(torch.equal(x, mingru_scan_2d(projected, paths=ROWS)) for x in found)
