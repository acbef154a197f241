"""The scan of minGRU over a map, along several paths."""

from functools import cache, partial

import pytest
import torch

from mmvisiongru.ops import mingru_scan, mingru_scan_2d
from tests.harness.scans import (
    PATHS,
    TOLERANCE,
    assert_within,
    backends,
    composed_2d,
    each_backend,
    leaf,
    loop,
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


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize(
    'paths',
    [*((p,) for p in PATHS), PATHS[:2], PATHS, ('column_reverse', 'row'), ('row', 'row')],
    ids=','.join,
)
@each_backend
def test_2d(device, backend, dtype, paths, candidate):
    options = dict(paths=paths, candidate=candidate)
    for size in ((1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (7, 5), (12, 12)):
        projected, cotangent = inputs_of((2, *size), paths)
        x, dy = projected.to(device), cotangent.to(device)
        got = run(partial(mingru_scan_2d, **options, backend=backend), x, cotangent=dy)
        assert_within(got, expected_of(projected, cotangent, **options), dtype)
        # The two public functions agree as well, whatever the loop above says.
        scan = partial(mingru_scan, backend=backend)
        assert_within(got, run(partial(composed_2d, **options, scan=scan), x, cotangent=dy), dtype)


@cache
def expected_of_square_maps(side, paths):
    """As ``expected_of_all``, for maps; the dtypes are one batch."""
    tensors = [inputs_of((1, side, side), paths, dtype, width=2) for dtype in TOLERANCE]
    ref = expected_of(
        *(torch.cat([x.double() for x in column]) for column in zip(*tensors, strict=True)), paths=paths
    )
    return {
        dtype: (*tensors[i], {name: x[i : i + 1] for name, x in ref.items()})
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
    projected, cotangent = inputs_of((2, 5, 7), PATHS)
    scan = partial(mingru_scan_2d, paths=PATHS, backend=backend)
    ref = expected_of(projected, cotangent)
    for order, back in (((0, 3, 1, 2), (0, 2, 3, 1)), ((0, 2, 1, 3), (0, 2, 1, 3))):
        x, dy = (t.to(device).permute(order).contiguous().permute(back) for t in (projected, cotangent))
        assert not x.is_contiguous()
        assert_within(run(scan, x, cotangent=dy), ref, dtype)
    ones = torch.ones((), device=device).expand(cotangent.shape)
    assert_within(run(scan, projected.to(device), cotangent=ones), expected_of(projected, ones.cpu()), dtype)


@pytest.mark.parametrize('path', PATHS)
@each_backend
def test_2d_tiles_that_pass_on_their_state(device, backend, dtype, path):
    (projected,) = normal(2, 7, 5, 6, number=1)
    whole = composed_2d(projected.double(), (path,))
    column, flip = path.startswith('column'), path.endswith('reverse')
    dim = 2 if column else 1
    order = slice(None, None, -1 if flip else 1)
    state, outs = None, []
    for tile in projected.to(device).split([3, 1, projected.size(dim) - 4], dim)[order]:
        h = mingru_scan_2d(tile, paths=(path,), backend=backend, state=state)
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
    x, dy = (t.to(device) for t in inputs_of((2, 9, 7), PATHS, width=6))
    first, second = (
        run(partial(mingru_scan_2d, paths=paths, backend=backend), x, cotangent=dy)
        for paths in (PATHS, list(PATHS))
    )
    assert all(torch.equal(t, second[name]) for name, t in first.items())


def test_2d_default_is_both_row_directions():
    (projected,) = normal(1, 3, 5, 8, number=1)
    assert torch.equal(mingru_scan_2d(projected), mingru_scan_2d(projected, paths=('row', 'row_reverse')))
