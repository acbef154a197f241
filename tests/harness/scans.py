"""The scan of minGRU written as a loop, and what it takes to compare the backends with it."""

from functools import cache
from itertools import chain, product

import pytest
import torch

from mmvisiongru.ops import runnable_backends
from mmvisiongru.ops.scan_paths import PATHS as KNOWN_PATHS
from mmvisiongru.selfcheck.check import TOLERANCE, error

DEVICES = ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',)
PATHS = tuple(KNOWN_PATHS)
ROWS = PATHS[:2]


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


def expected_of_each(cases):
    """Float64 results of (gate, hidden, cotangent, reverse, candidate) of one shape; one loop serves all."""
    leaves = [[x.double().requires_grad_() for x in case[:2]] for case in cases]
    flip = [(lambda x: x.flip(1)) if reverse else (lambda x: x) for *_, reverse, _ in cases]
    pairs = [coefficients(*map(f, leaf), case[-1]) for f, leaf, case in zip(flip, leaves, cases, strict=True)]
    states = loop(*(torch.cat(x) for x in zip(*pairs, strict=True))).split(len(cases[0][0]))
    outs = [f(h) for f, h in zip(flip, states, strict=True)]
    grads = torch.autograd.grad(outs, list(chain(*leaves)), [case[2].double() for case in cases])
    return [
        dict(out=out.detach(), d_gate=d_gate, d_hidden=d_hidden)
        for out, d_gate, d_hidden in zip(outs, grads[::2], grads[1::2], strict=True)
    ]


@cache
def expected_of_all(shape):
    """Inputs and float64 results of every dtype, direction and candidate."""
    cases = list(product(TOLERANCE, (False, True), ('g', 'linear')))
    inputs = [normal(*shape, dtype=dtype, seed=shape[1]) for dtype, _, _ in cases]
    results = expected_of_each([(*x, *case[1:]) for x, case in zip(inputs, cases, strict=True)])
    return dict(zip(cases, zip(inputs, results, strict=True), strict=True))


def expected(shape, dtype, reverse, candidate):
    """Inputs of ``dtype`` and what the loop makes of them in float64."""
    return expected_of_all(shape)[dtype, reverse, candidate]


def assert_within(got, ref, dtype, bound=None):
    """Every tensor of ``got`` is finite, of the right dtype and shape, and within the table of ``ref``."""
    measure, limit = TOLERANCE[dtype]
    assert got.keys() == ref.keys()
    for name, x in got.items():
        # Decay and bonus of Bi-WKV are float32 at least.
        assert x.dtype == (torch.promote_types(dtype, torch.float32) if name in ('dw', 'du') else dtype), name
        assert x.shape == ref[name].shape, name
        assert x.isfinite().all(), f'{name} is not finite'
        found = error(x, ref[name], measure)
        assert found <= (bound or limit), f'{name}: {measure} error {found:.2e} > {bound or limit:.0e}'


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


def transposed(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def leaf(x):
    return x.detach().clone().requires_grad_()
