r"""Torch backend: a two-level scan in linear space, for any device, dtype and length.

L tokens are cut into n chunks of k = floor(sqrt(L)) tokens and a tail. All chunks are scanned at once in k
steps, for their end states and the products of keep = 1 - z; n steps carry the state from chunk to chunk;
k more steps write every h. That makes 3 sqrt(L) sequential operations, each on B n D elements. Linear space
is well conditioned (0 < keep < 1): it needs no logarithm and no cumulative sum that grows with L.
"""

from collections.abc import Callable, Sequence
from math import isqrt

import torch
from torch import Tensor

from ..backends import accumulation_dtype
from ..backends import runs_everywhere as unsupported
from ..scan_paths import as_sequence, steps, write_sequence
from .interface import PreActivations, ScanOptions

__all__ = ['backward', 'forward', 'unsupported']


def _candidate(hidden: Tensor, candidate: str) -> Tensor:
    """g(x) = min(sigmoid(x), 0.5) + max(x, 0), or x."""
    if candidate == 'linear':
        return hidden
    return torch.sigmoid(hidden).clamp_(max=0.5).add_(hidden.clamp(min=0))


def _forward_step(state: Tensor, keep: Tensor, add: Tensor, out: Tensor | None = None) -> None:
    """h_t = keep_t h_{t-1} + add_t."""
    torch.addcmul(add, keep, state, out=state)
    if out is not None:
        out.copy_(state)


def _adjoint_step(carry: Tensor, z: Tensor, dh: Tensor, out: Tensor | None = None) -> None:
    """s_t = dh_t + carry,  carry = s_t - z_t s_t."""
    carry.add_(dh)
    if out is not None:
        out.copy_(carry)
    _adjoint_decay(carry, z)


def _adjoint_decay(carry: Tensor, z: Tensor) -> None:
    # Not keep_t s_t: for a nearly closed gate, keep = 1 - z rounds z away in each token.
    carry.addcmul_(carry, z, value=-1)


def _walk(step: Callable, state: Tensor, maps: Sequence[Tensor], reverse: bool) -> None:
    for t in steps(maps[0].size(-2), reverse):
        step(state, *(x[..., t, :] for x in maps))


def _scan(step: Callable, decay: Callable, maps: Sequence[Tensor], state: Tensor, reverse: bool) -> None:
    """Scan maps (B, L, D) into the last of them, from ``state`` (B, D).

    ``step(state, *tokens)`` updates the state in place and writes the last token; ``decay(state, token)``
    does to the state what ``step`` does without adding anything.
    """
    length = maps[0].size(1)
    size = max(1, isqrt(length))
    whole = length - length % size
    chunks = [x[:, :whole].unflatten(1, (-1, size)) for x in maps]
    tail = [x[:, whole:] for x in maps]
    end = torch.zeros_like(chunks[0][:, :, 0])
    factor = torch.ones_like(end)
    _walk(step, end, chunks[:2], reverse)
    _walk(decay, factor, chunks[:1], reverse)
    if reverse:
        _walk(step, state, tail, reverse)
    # In place, the ends of chunks that started from zero become the states that enter the chunks.
    for i in steps(end.size(1), reverse):
        after = torch.addcmul(end[:, i], factor[:, i], state)
        end[:, i] = state
        state.copy_(after)
    _walk(step, end, chunks, reverse)
    if not reverse:
        _walk(step, state, tail, reverse)


def forward(x: PreActivations, out: Tensor, options: ScanOptions, state: Tensor | None = None) -> None:
    """Scan, see ``interface.py``."""
    if not out.numel():
        return
    acc = accumulation_dtype(out.dtype)
    for p, (column, reverse) in enumerate(options.paths):
        gate, hidden = (as_sequence(t, column).to(acc) for t in x.path(p))
        # Not in place: gate and hidden may be the caller's tensors.
        add = torch.sigmoid(gate).mul_(_candidate(hidden, options.candidate))
        keep = gate.neg().sigmoid_()
        # A copy, as the scan updates it in place.
        start = add.new_zeros(add.size(0), add.size(2)) if state is None else state[:, p].to(acc, copy=True)
        _scan(_forward_step, Tensor.mul_, (keep, add, add), start, reverse)
        write_sequence(add, column, out[..., p, :])


def backward(grad: Tensor, x: PreActivations, h: Tensor, out: PreActivations, options: ScanOptions) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    if not grad.numel():
        return
    acc = accumulation_dtype(h.dtype)
    for p, (column, reverse) in enumerate(options.paths):
        maps = (grad[..., p, :], h[..., p, :], *x.path(p))
        dh, hs, gate, hidden = (as_sequence(t, column).to(acc) for t in maps)
        z = torch.sigmoid(gate)
        c = _candidate(hidden, options.candidate)
        d_hidden, carry = torch.empty_like(z), z.new_zeros(z.size(0), z.size(2))
        _scan(_adjoint_step, _adjoint_decay, (z, dh, d_hidden), carry, not reverse)
        d_hidden.mul_(z)
        first = torch.zeros_like(hs[:, :1])
        previous = torch.cat((hs[:, 1:], first) if reverse else (first, hs[:, :-1]), dim=1)
        d_gate = (c - previous).mul_(d_hidden).mul_(gate.neg().sigmoid_())
        if options.candidate == 'g':
            d_hidden.mul_(torch.where(hidden >= 0, 1.0, c * (1 - c)))
        for value, target in zip((d_gate, d_hidden), out.path(p), strict=True):
            write_sequence(value, column, target)
