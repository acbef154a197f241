"""Forward-mode differentiation and torch.func: derivatives as those of the recurrence written out."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from mmvisiongru.models.layers import MinGRU2D
from mmvisiongru.ops import mingru_scan, mingru_scan_2d, runnable_backends
from mmvisiongru.ops.scan_paths import PATHS
from tests.harness.per_sample import assert_gradients_of_each_sample

BACKENDS = pytest.mark.parametrize('backend', runnable_backends())
CANDIDATES = pytest.mark.parametrize('candidate', ['g', 'linear'])
REVERSE = pytest.mark.parametrize('reverse', [False, True])


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def written_out(gate, hidden, reverse=False, candidate='g'):
    """The recurrence in operators that torch differentiates in every way."""
    z = torch.sigmoid(gate)
    c = hidden if candidate == 'linear' else torch.where(hidden < 0, torch.sigmoid(hidden), hidden + 0.5)
    h, states = torch.zeros_like(z[:, 0]), {}
    for t in reversed(range(z.size(1))) if reverse else range(z.size(1)):
        h = states[t] = torch.sigmoid(-gate[:, t]) * h + z[:, t] * c[:, t]
    return torch.stack([states[t] for t in range(z.size(1))], 1)


@BACKENDS
@CANDIDATES
@REVERSE
@pytest.mark.parametrize('moved', ['gate', 'hidden', 'both'])
def test_jvp(backend, candidate, reverse, moved):
    inputs, tangents = random(2, 2, 7, 3), random(2, 2, 7, 3, seed=1)
    tangents[0] *= moved != 'hidden'
    tangents[1] *= moved != 'gate'
    ref = jvp(partial(written_out, reverse=reverse, candidate=candidate), tuple(inputs), tuple(tangents))
    scan = partial(mingru_scan, reverse=reverse, candidate=candidate, backend=backend)
    torch.testing.assert_close(jvp(scan, tuple(inputs), tuple(tangents)), ref)


@BACKENDS
def test_dual_numbers_of_one_input(backend):
    gate, hidden, tangent = random(3, 2, 7, 3)
    _, ref = jvp(lambda x: written_out(gate, x), (hidden,), (tangent,))
    with forward_ad.dual_level():
        out = mingru_scan(gate, forward_ad.make_dual(hidden, tangent), backend=backend)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, ref)


@BACKENDS
def test_reverse_mode_and_jacobians(backend):
    gate, hidden = random(2, 2, 5, 3)
    scan = partial(mingru_scan, backend=backend)
    for transform in (jacrev, jacfwd):
        got, ref = (transform(f, argnums=(0, 1))(gate, hidden) for f in (scan, written_out))
        torch.testing.assert_close(got, ref)


@BACKENDS
@pytest.mark.parametrize('in_dims', [(0, 0), (1, None), (None, 2), (-1, 0)])
def test_vmap(backend, in_dims):
    inputs = [random(2, 5, 3, seed=i) for i in range(2)]
    inputs = [
        x if dim is None else torch.stack([x, 2 * x, -x], dim) for x, dim in zip(inputs, in_dims, strict=True)
    ]
    got, ref = (vmap(f, in_dims)(*inputs) for f in (partial(mingru_scan, backend=backend), written_out))
    torch.testing.assert_close(got, ref)


@pytest.mark.parametrize('paths', [('row', 'row_reverse'), tuple(PATHS)], ids=len)
def test_gradients_of_each_sample_of_the_mixer(paths):
    mixer = MinGRU2D(4, paths).double()
    x, cotangent = random(2, 3, 4, 5, 4)
    assert_gradients_of_each_sample(mixer, x, cotangent)


def test_jvp_of_a_map():
    projected, tangent = random(2, 2, 3, 4, 4 * 2 * 3)
    scan = partial(mingru_scan_2d, paths=list(PATHS))
    _, got = jvp(scan, (projected,), (tangent,))
    step = 1e-6
    ref = (scan(projected + step * tangent) - scan(projected - step * tangent)) / (2 * step)
    torch.testing.assert_close(got, ref, rtol=1e-6, atol=1e-8)


def test_second_derivatives_are_refused_in_one_line():
    gate, hidden = random(2, 1, 3, 2)
    with pytest.raises(RuntimeError, match=r'^the minGRU scan has no second derivative$'):
        hessian(lambda gate: mingru_scan(gate, hidden).sum())(gate)
