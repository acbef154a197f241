"""The scan of minGRU written as a loop, and what it takes to compare the backends with it."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from mmvisiongru.ops import runnable_backends
from mmvisiongru.ops.scan_paths import PATHS as KNOWN_PATHS
from mmvisiongru.selfcheck.check import TOLERANCE, error

DEVICES = ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',)
PATHS = tuple(KNOWN_PATHS)
ROWS, COLUMNS = ('row', 'row_reverse'), ('column', 'column_reverse')


def backends(*dtypes):
    """(device, backend, dtype) of everything that runs here, a backend of later too."""
    return [
        pytest.param(device, name, dtype, id=f'{device}-{name}-{str(dtype)[6:]}')
        for device in DEVICES
        for dtype in dtypes
        for name in runnable_backends(device, dtype)
    ]


each_backend = pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(torch.float32))


def loop(keep, add):
    """The recurrence one token at a time, for autograd to differentiate."""
    if keep.size(1) > 200:
        # The same in fewer steps: after n of them, a state has what 2^n tokens add to it.
        for n in range((keep.size(1) - 1).bit_length()):
            shift = 0, 0, 1 << n, -(1 << n)
            add, keep = torch.addcmul(add, keep, F.pad(add, shift)), keep * F.pad(keep, shift)
        return add
    h, states = torch.zeros_like(keep[:, 0]), []
    for keep_t, add_t in zip(keep.unbind(1), add.unbind(1), strict=True):
        h = torch.addcmul(add_t, keep_t, h)
        states.append(h)
    return torch.stack(states, 1)


def loop_scan(gate, hidden, reverse=False, candidate='g'):
    """h_t = (1 - z_t) h_{t-1} + z_t c_t."""
    if reverse:
        return loop_scan(gate.flip(1), hidden.flip(1), False, candidate).flip(1)
    c = hidden if candidate == 'linear' else torch.where(hidden < 0, torch.sigmoid(hidden), hidden + 0.5)
    return loop(torch.sigmoid(-gate), torch.sigmoid(gate) * c)


def normal(*shape, dtype=torch.float32, number=3, seed=0):
    """Standard-normal gate, hidden and cotangent."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(number)]


def run(scan, *inputs, cotangent, device='cpu'):
    """Output and gradient of each input of ``scan`` on leaves of the same layout."""
    leaves = [x.detach().to(device).requires_grad_() for x in inputs]
    out = scan(*leaves)
    names = ('out', 'd_gate', 'd_hidden') if len(inputs) == 2 else ('out', 'd_projected')
    grads = torch.autograd.grad(out, leaves, cotangent.to(device))
    return dict(zip(names, (out.detach(), *grads), strict=True))


def by_loop(gate, hidden, cotangent, **options):
    """Output and gradients of the loop in float64."""
    wide = [x.double() for x in (gate, hidden, cotangent)]
    return run(lambda *x: loop_scan(*x, **options), *wide[:2], cotangent=wide[2])


@cache
def expected(shape, dtype, reverse, candidate):
    """Inputs of ``dtype`` and what the loop makes of them in float64."""
    inputs = normal(*shape, dtype=dtype, seed=shape[1])
    return inputs, by_loop(*inputs, reverse=reverse, candidate=candidate)


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


def composed_2d(projected, paths=PATHS, candidate='g'):
    """mingru_scan_2d by transposing, flipping, splitting and concatenating."""
    outs = []
    for (column, reverse), part in zip(
        map(KNOWN_PATHS.get, paths), projected.chunk(len(paths), -1), strict=True
    ):
        tokens = part.transpose(1, 2) if column else part
        hidden, gate = tokens.flatten(1, 2).chunk(2, -1)
        h = loop_scan(gate, hidden, reverse, candidate).unflatten(1, tokens.shape[1:3])
        outs.append(h.transpose(1, 2) if column else h)
    return torch.cat(outs, -1)


def transposed(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)
