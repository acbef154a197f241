r"""Torch backend: Bi-WKV in linear time by two levels of recurrences, for any device with float64.

With x_t = e^{k_t - m}, m = max_t k_t, and z = [x v, x], a token needs

K[z]_t = P[z]_t + F[z]_t + e^u z_t,   P[z]_t = sum_{i<t} e^{-w (t-1-i)} z_i,   F the same from the last token.

P is a recurrence, P_{t+1} = e^{-w} P_t + z_t. About sqrt(T) chunks of tokens are summed at the same time, and
the sums are then carried from chunk to chunk.

Backward, K is its own transpose: K of [r, r y], r = dL/dy / K[x]. The derivative of P by w is -M, where
M_t = sum_{i<t} (t-1-i) e^{-w (t-1-i)} z_i is a recurrence, too: M_{t+1} = e^{-w} (M_t + P_t).

All sums are float64: where far tokens dominate, dw is a small difference of large sums.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import runs_everywhere as unsupported
from .interface import Wkv, piece_length

__all__ = ['backward', 'forward', 'unsupported']

ELEMENTS = 1 << 19  # at a time: backward takes some fifty float64 values for each


def _past(z: Tensor, w: Tensor, chunk: int, kinds: int, carry: bool) -> Tensor:
    """P and, for two kinds, M of z (B, T, 2, C), as (kinds, B, T, 2, C).

    Chunks have ``chunk`` tokens; without ``carry``, the sums of each one begin at zero.
    """
    T = z.size(1)
    z = F.pad(z, (0, 0, 0, 0, 0, -T % chunk)).unflatten(1, (-1, chunk))
    j = torch.arange(chunk + 1, dtype=w.dtype, device=w.device).view(-1, 1, 1)
    powers = torch.exp(-w * j)
    # At the last position, what a chunk leaves to the next one.
    sums = z.new_zeros(kinds, *z.shape[:2], chunk + 1, *z.shape[3:])
    for t in range(chunk):
        now, then = sums[:, :, :, t], sums[:, :, :, t + 1]
        torch.addcmul(z[:, :, t], powers[1], now[0], out=then[0])
        for past, moment, out in zip(now, now[1:], then[1:], strict=False):
            torch.mul(moment + past, powers[1], out=out)
    for q in range(1, sums.size(2) if carry else 0):
        entered, inside = sums[:, :, q - 1, -1:], sums[:, :, q]
        inside.addcmul_(powers, entered)
        inside[1:].addcmul_(powers * j, entered[:-1])
    return sums[:, :, :, :-1].flatten(2, 3)[:, :, :T]


def _inside(z: Tensor, w: Tensor, kinds: int, transpose: bool) -> tuple[Tensor, Tensor | None]:
    """A[z] - G[z] of the pieces of the released kernel, (B, T, 2, C), and for two kinds its derivative by w.

    A_t = sum_{s<=i<t} e^{-w (t-i)} z_i,   G_t = sum_{s<i<=t} e^{w (t-i)} z_i,   s the first of t's piece.
    """
    T, piece = z.size(1), piece_length(z.size(1))
    z = F.pad(z, (0, 0, 0, 0, 0, -T % piece))
    after_first = (torch.arange(z.size(1), device=z.device) % piece > 0).view(-1, 1, 1)
    z = z.flip(1) if transpose else z
    rest = z if transpose else z * after_first
    a = torch.exp(-w) * _past(z, w, piece, kinds, carry=False)
    g = torch.exp(w) * _past(rest, -w, piece, kinds, carry=False)
    if transpose:
        return (a[0].flip(1) - after_first * (g[0] + rest).flip(1))[:, :T], None
    return (a[0] - g[0] - rest)[:, :T], -(a.sum(0) + g.sum(0))[:, :T] if kinds == 2 else None


def _mix(
    z: Tensor, x: Wkv, distance: str, kinds: int = 1, transpose: bool = False
) -> tuple[Tensor, Tensor | None]:
    """K[z] of z (B, T, 2, C), or its transpose; for two kinds also its derivative by w."""
    both = _past(torch.cat((z, z.flip(1))), x.w, max(1, isqrt(z.size(1))), kinds, carry=True)
    past, future = both.chunk(2, 1)
    sides, own = past + future.flip(2), x.u.exp() * z
    if distance == 'paper':
        return sides[0] + own, -sides[1] if kinds == 2 else None
    # The released kernel has distances |t - i|, and adds (e^w - 1) (A - G).
    inside, slope = _inside(z, x.w, kinds, transpose)
    sides, factor = torch.exp(-x.w) * sides, torch.expm1(x.w)
    mixed = sides[0] + own + factor * inside
    return mixed, None if slope is None else factor * slope + x.w.exp() * inside - sides.sum(0)


def _pair(x: Wkv) -> Tensor:
    """z = [x v, x], (B, T, 2, C)."""
    e = (x.k - x.k.amax(1, keepdim=True)).exp()
    return torch.stack((e * x.v, e), 2)


def _blocks(x: Wkv, *tensors: Tensor):
    """Blocks of channels of x in float64, with those of other tensors."""
    channels = max(1, ELEMENTS // (x.k.size(0) * x.k.size(1)))
    for block in zip(*(t.split(channels, -1) for t in (*x, *tensors)), strict=True):
        yield Wkv(*(t.double() for t in block[:4])), *block[4:]


def forward(x: Wkv, y: Tensor, distance: str) -> None:
    """Average, see ``interface.py``."""
    for part, out in _blocks(x, y):
        sums, _ = _mix(_pair(part), part, distance)
        out.copy_(sums[:, :, 0] / sums[:, :, 1])


def backward(grad: Tensor, x: Wkv, out: Wkv, distance: str) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    for part, g, dw, du, dk, dv in _blocks(x, grad, *out):
        z = _pair(part)
        sums, slopes = _mix(z, part, distance, kinds=2)
        y, r = sums[:, :, 0] / sums[:, :, 1], g / sums[:, :, 1]
        dw.copy_((r * (slopes[:, :, 0] - y * slopes[:, :, 1])).sum((0, 1)))
        du.copy_((r * (z[:, :, 0] - y * z[:, :, 1])).sum((0, 1)) * part.u.exp())
        adjoint, _ = _mix(torch.stack((r, r * y), 2), part, distance, transpose=True)
        ar, ars = (adjoint * z[:, :, 1:]).unbind(2)
        dv.copy_(ar)
        dk.copy_(part.v * ar - ars)
