"""The scan of minGRU over a map, along several paths."""

from functools import cache, partial

import pytest
import torch

from mmvisiongru.ops import mingru_scan, mingru_scan_2d
from mmvisiongru.ops.scan_paths import PATHS as KNOWN
from tests.harness.scans import (
    PATHS,
    ROWS,
    TOLERANCE,
    assert_within,
    backends,
    composed_2d,
    each_backend,
    loop,
    loop_scan,
    normal,
    run,
)


def inputs_of(shape, paths, dtype=torch.float32, width=3):
    """Projected map and cotangent of (B, H, W)."""
    (projected,) = normal(*shape, len(paths) * 2 * width, number=1, dtype=dtype)
    (cotangent,) = normal(*shape, len(paths) * width, number=1, dtype=dtype, seed=1)
    return projected, cotangent


def expected_of(projected, cotangent, **options):
    return run(partial(composed_2d, **options), projected.double(), cotangent=cotangent.double())


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


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize(
    'paths', [*((p,) for p in PATHS), ROWS, PATHS, ('column_reverse', 'row'), ('row', 'row')], ids=','.join
)
@each_backend
def test_2d(device, backend, dtype, paths, candidate):
    options = dict(paths=paths, candidate=candidate)
    for size in ((1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (7, 5), (12, 12)):
        projected, cotangent = inputs_of((2, *size), paths)
        scan = partial(mingru_scan_2d, **options, backend=backend)
        got = run(scan, projected, cotangent=cotangent, device=device)
        assert_within(got, expected_of(projected, cotangent, **options), dtype)
        # The two public functions agree as well, whatever the loop above says.
        composed = partial(composed_2d, **options, scan=partial(mingru_scan, backend=backend))
        assert_within(got, run(composed, projected, cotangent=cotangent, device=device), dtype)


@cache
def expected_of_square_maps(side, paths, dtype):
    tensors = inputs_of((1, side, side), paths, dtype, width=2)
    return *tensors, expected_of(*tensors, paths=paths)


@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(*TOLERANCE))
def test_2d_precision_at_stage_one_of_a_256_image(device, backend, dtype):
    paths = ('row', 'column_reverse')
    projected, cotangent, ref = expected_of_square_maps(28 if backend == 'reference' else 64, paths, dtype)
    scan = partial(mingru_scan_2d, paths=paths, backend=backend)
    assert_within(run(scan, projected, cotangent=cotangent, device=device), ref, dtype)


@each_backend
def test_2d_noncontiguous(device, backend, dtype):
    projected, cotangent = inputs_of((2, 5, 7), PATHS)
    scan = partial(mingru_scan_2d, paths=PATHS, backend=backend)
    ref = expected_of(projected, cotangent)
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
    projected, _ = inputs_of((2, 3, 5), ROWS)
    found = mingru_scan_2d(projected), mingru_scan_2d(projected, paths=list(ROWS))
    assert all(torch.equal(x, mingru_scan_2d(projected, paths=ROWS)) for x in found)
