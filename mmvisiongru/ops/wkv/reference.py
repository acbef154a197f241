r"""Reference backend: the definition of Bi-WKV (arXiv:2403.02308, eq. 5), one token of the output at a time.

y_t = sum_i p_i v_i,   p_i = a_ti e^{k_i} / sum_j a_tj e^{k_j},   a_ti = e^{-w (|t - i| - 1)},   a_tt = e^u

Backward, with g = dL/dy_t,  dv_i = g p_i,  dk_i = g (v_i - y_t) p_i.  The terms of dw and du have da_ti/dw
and da_ti/du in place of a_ti in the numerator of p_i.

Everything is float64 and in no danger of overflow. Time grows with the square of the number of tokens.
"""

from math import inf

import torch
from torch import Tensor

from ..backends import runs_everywhere as unsupported
from .interface import Wkv, piece_length

__all__ = ['backward', 'forward', 'unsupported']


def _shares(x: Wkv, t: int, distance: str) -> tuple[Tensor, Tensor, Tensor]:
    """Shares p of all tokens in y_t, and their derivatives by w and by u, (B, T, C) each."""
    T = x.k.size(1)
    gap = t - torch.arange(T, dtype=torch.float64, device=x.k.device)[:, None]
    own, steps = gap == 0, gap.abs() - 1
    if distance == 'released':
        # The released kernel counts |t - i| - 1 in t's piece alone, which begins ``inside`` tokens before t.
        inside = t % piece_length(T)
        steps = gap.abs() - ((gap > 0) & (gap <= inside)).double()
    # Exponents, factors and the derivatives of both by w: a = sum of factor * e^exponent.
    terms = [(torch.where(own, x.u, -x.w * steps), 1, torch.where(own, 0, -steps))]
    if distance == 'released':
        # It also subtracts (e^w - 1) e^{w (t - i)} from the second token of the piece to t itself.
        exponent = torch.where((gap >= 0) & (gap < inside), x.w * gap, -inf)
        terms.append((exponent, -torch.expm1(x.w), -x.w.exp() - torch.expm1(x.w) * gap))
    logs = torch.stack([exponent + x.k for exponent, _, _ in terms])
    powers = (logs - logs.amax((0, 2), keepdim=True)).exp()
    weights = sum(factor * power for (_, factor, _), power in zip(terms, powers, strict=True))
    slopes = sum(slope * power for (_, _, slope), power in zip(terms, powers, strict=True))
    return tuple(y / weights.sum(1, keepdim=True) for y in (weights, slopes, powers[0] * own))


def forward(x: Wkv, y: Tensor, distance: str) -> None:
    """Average, see ``interface.py``."""
    x = Wkv(*(t.double() for t in x))
    for t in range(y.size(1)):
        y[:, t] = (_shares(x, t, distance)[0] * x.v).sum(1)


def backward(grad: Tensor, x: Wkv, out: Wkv, distance: str) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    x = Wkv(*(t.double() for t in x))
    sums = Wkv(*map(torch.zeros_like, x))
    for t, g in enumerate(grad.double().split(1, 1)):
        share, by_w, by_u = _shares(x, t, distance)
        slope = g * (x.v - (share * x.v).sum(1, keepdim=True))
        for total, term in zip(sums, (slope * by_w, slope * by_u, slope * share, g * share), strict=True):
            total.add_(term if total.dim() == 3 else term.sum((0, 1)))
    for target, total in zip(out, sums, strict=True):
        target.copy_(total)
