r"""Reference backend: the definition of Bi-WKV, one token at a time with a running maximum.

y_t = N_t / D_t,   N_t = R[e^k v]_t,   D_t = R[e^k]_t,   with the linear operator (arXiv:2403.02308, eq. 5)

R[x]_t = sum_{i<t} e^{-w (t-1-i)} x_i + sum_{i>t} e^{-w (i-t-1)} x_i + e^u x_t

Backward, with r_t = dL/dy_t / D_t and R' the transpose of R, which is R itself for the distance of the paper:

dv = e^k R'[r],   dk = e^k (v R'[r] - R'[r y]),   du, dw = sum_t r_t (dR[e^k v]_t - y_t dR[e^k]_t)

Everything is float64, and every sum is stored as e^exponent times a mantissa, so that no decay overflows.
"""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import runs_everywhere as unsupported
from ..chunking import steps
from .interface import Wkv, piece_length

LIMIT = {torch.float32: inf, torch.float64: inf}

__all__ = ['backward', 'forward', 'unsupported']


class Scaled(NamedTuple):
    """Numbers e^exponent * value, (B, T, 2, C), and their derivatives by w, e^exponent * slope."""

    value: Tensor
    slope: Tensor
    exponent: Tensor


def _earlier(x: Scaled, w: Tensor, reverse: bool, piece: int = 0) -> Scaled:
    """Sum of e^{-w d} x over the tokens read before, d + 1 steps away, in the same piece if any."""
    out = Scaled(*map(torch.empty_like, x))
    length = x.value.size(1)
    start = [torch.zeros_like(x.value[:, 0]), torch.zeros_like(x.value[:, 0])]
    start.append(torch.full_like(x.exponent[:, 0], -inf))
    state = Scaled(*start)
    for t in steps(length, reverse):
        if piece and ((t + 1) % piece == 0 if reverse else t % piece == 0):
            state = Scaled(*start)
        for sums, target in zip(state, out, strict=True):
            target[:, t] = sums
        exponent = torch.maximum(state.exponent - w, x.exponent[:, t])
        keep, add = (state.exponent - w - exponent).exp(), (x.exponent[:, t] - exponent).exp()
        value = keep * state.value + add * x.value[:, t]
        state = Scaled(value, keep * (state.slope - state.value), exponent)
    return out


def _sum(terms: list[tuple[Tensor | float, Tensor | float, Scaled]]) -> Scaled:
    """Sum of c x over triples (c, derivative of c by w, x)."""
    exponent = torch.stack([x.exponent for _, _, x in terms]).amax(0)
    value = slope = 0
    for c, dc, x in terms:
        scale = (x.exponent - exponent).exp()
        value = value + scale * c * x.value
        slope = slope + scale * (c * x.slope + dc * x.value)
    return Scaled(value, slope, exponent)


def _mix(x: Scaled, w: Tensor, u: Tensor, distance: str, transpose: bool = False) -> Scaled:
    """R[x], or its transpose."""
    terms = [(1, 0, _earlier(x, w, reverse)) for reverse in (False, True)]
    if distance == 'paper':
        return _sum([*terms, (1, 0, x._replace(exponent=x.exponent + u))])
    # The released kernel, times e^w: plain distances |t - i|, and inside of t's piece, which starts at s,
    #     (e^w - 1) (sum_{s <= i < t} e^{-w (t-i)} x_i  -  sum_{s < i <= t} e^{w (t-i)} x_i)
    piece, e = piece_length(x.value.size(1)), w.exp()
    after_first = (torch.arange(x.value.size(1), device=w.device) % piece > 0).view(1, -1, 1, 1)
    inner = x._replace(value=x.value * after_first)
    growing = _earlier(inner, -w, transpose, piece)
    growing = Scaled(growing.value * after_first, -growing.slope * after_first, growing.exponent)
    return _sum(
        [
            *terms,
            (1, 1, x._replace(exponent=x.exponent + u + w)),
            (e - 1, e, _earlier(x, w, transpose, piece)),
            (e - e * e, e - 2 * e * e, inner),
            (e * (e - e * e), 2 * e * e - 3 * e**3, growing),
        ]
    )


def _pair(a: Tensor, b: Tensor, exponent: Tensor) -> Scaled:
    """e^exponent (a, b)."""
    value = torch.stack((a, b), 2)
    return Scaled(value, torch.zeros_like(value), exponent)


def _forward(x: Wkv, distance: str) -> tuple[Wkv, Scaled, Tensor]:
    x = Wkv(*(t.double() for t in x))
    sums = _mix(_pair(x.v, torch.ones_like(x.v), x.k[:, :, None]), x.w, x.u, distance)
    return x, sums, sums.value[:, :, 0] / sums.value[:, :, 1]


def forward(x: Wkv, y: Tensor, distance: str) -> None:
    """Average, see ``interface.py``."""
    y.copy_(_forward(x, distance)[2])


def backward(grad: Tensor, x: Wkv, out: Wkv, distance: str) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    x, sums, y = _forward(x, distance)
    r = grad / sums.value[:, :, 1]
    adjoint = _mix(_pair(r, r * y, -sums.exponent), x.w, x.u, distance, transpose=True)
    ar, ars = (adjoint.value * (x.k[:, :, None] + adjoint.exponent).exp()).unbind(2)
    out.v.copy_(ar)
    out.k.copy_(x.v * ar - ars)
    out.w.copy_((r * (sums.slope[:, :, 0] - y * sums.slope[:, :, 1])).sum((0, 1)))
    self_term = x.k + x.u + (x.w if distance == 'released' else 0) - sums.exponent[:, :, 0]
    out.u.copy_((r * self_term.exp() * (x.v - y)).sum((0, 1)))
