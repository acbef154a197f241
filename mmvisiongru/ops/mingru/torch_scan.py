r"""Torch backend: a two-level scan in linear space, for any device, dtype and length.

L tokens are cut into n chunks of k = floor(sqrt(L)) tokens and a tail. All chunks are scanned at once in k
steps, for their end states and the products of keep = 1 - z; n steps carry the state from chunk to chunk;
k more steps write every h. That makes 3 sqrt(L) sequential operations, each on B n D elements. Linear space
is well conditioned (0 < keep < 1): it needs no logarithm and no cumulative sum that grows with L.
"""

from math import isqrt

import torch
from torch import Tensor

from ..backends import accumulation_dtype
from ..backends import runs_everywhere as unsupported
from ..chunking import split, steps
from ..scan_paths import as_sequence, write_sequence
from .interface import PreActivations, ScanOptions

__all__ = ['backward', 'forward', 'unsupported']


def _candidate(hidden: Tensor, candidate: str) -> Tensor:
    """g(x) = min(sigmoid(x), 0.5) + max(x, 0), or x."""
    if candidate == 'linear':
        return hidden
    return torch.sigmoid(hidden).clamp_(max=0.5).add_(hidden.clamp(min=0))


def _split(*maps: Tensor):
    """Chunks and tail of each map (B, L, D)."""
    size = max(1, isqrt(maps[0].size(1)))
    return zip(*(split(x, size) for x in maps), strict=True)


def _carry(end: Tensor, keep: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """Replace the ends (B, n, D) of chunks that started from zero by the state that enters each chunk.

    ``state`` (B, D) enters the first chunk; in place, it becomes the state after the last one.
    """
    for i in steps(end.size(1), reverse):
        after = torch.addcmul(end[:, i], keep[:, i], state)
        end[:, i] = state
        state.copy_(after)
    return end


def _forward_tokens(keep: Tensor, add: Tensor, out: Tensor, state: Tensor, reverse: bool) -> None:
    """h_t = keep_t h_{t-1} + add_t along the second to last dimension; updates ``state`` in place."""
    for t in steps(keep.size(-2), reverse):
        torch.addcmul(add[..., t, :], keep[..., t, :], state, out=state)
        out[..., t, :] = state


def _scan(keep: Tensor, add: Tensor, out: Tensor, state: Tensor, reverse: bool) -> None:
    chunks, tail = _split(keep, add, out)
    end = torch.zeros_like(chunks[0][:, :, 0])
    product = torch.ones_like(end)
    for t in steps(chunks[0].size(2), reverse):
        torch.addcmul(chunks[1][:, :, t], chunks[0][:, :, t], end, out=end)
        product.mul_(chunks[0][:, :, t])
    if reverse:
        _forward_tokens(*tail, state, reverse)
    _forward_tokens(*chunks, _carry(end, product, state, reverse), reverse)
    if not reverse:
        _forward_tokens(*tail, state, reverse)


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
        if column:
            h = torch.empty_like(add)
            _scan(keep, add, h, start, reverse)
            write_sequence(h, column, out[..., p, :])
        else:
            _scan(keep, add, as_sequence(out[..., p, :], column), start, reverse)


def _adjoint_tokens(z: Tensor, dh: Tensor, s: Tensor, carry: Tensor, reverse: bool) -> None:
    """s_t = dh_t + carry,  carry = s_t - z_t s_t, token by token; updates ``carry`` in place.

    Not keep_t s_t: for a nearly closed gate, keep = 1 - z rounds z away in each token.
    """
    for t in steps(z.size(-2), reverse):
        carry.add_(dh[..., t, :])
        s[..., t, :] = carry
        carry.addcmul_(carry, z[..., t, :], value=-1)


def _adjoint_scan(z: Tensor, dh: Tensor, reverse: bool) -> Tensor:
    """s_t = dh_t + (1 - z_{t+1}) s_{t+1}, from the last position to the first if ``reverse``."""
    s = torch.empty_like(z)
    chunks, tail = _split(z, dh, s)
    carry = z.new_zeros(z.size(0), z.size(2))
    end = torch.zeros_like(chunks[0][:, :, 0])
    keep = torch.ones_like(end)
    for t in steps(chunks[0].size(2), reverse):
        end.add_(chunks[1][:, :, t])
        end.addcmul_(end, chunks[0][:, :, t], value=-1)
        keep.addcmul_(keep, chunks[0][:, :, t], value=-1)
    if reverse:
        _adjoint_tokens(*tail, carry, reverse)
    _adjoint_tokens(*chunks, _carry(end, keep, carry, reverse), reverse)
    if not reverse:
        _adjoint_tokens(*tail, carry, reverse)
    return s


def _previous(h: Tensor, reverse: bool) -> Tensor:
    """h_{t-1} in reading order, zero before the first token."""
    first = torch.zeros_like(h[:, :1])
    return torch.cat((h[:, 1:], first) if reverse else (first, h[:, :-1]), dim=1)


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
        d_hidden = _adjoint_scan(z, dh, not reverse).mul_(z)
        d_gate = (c - _previous(hs, reverse)).mul_(d_hidden).mul_(gate.neg().sigmoid_())
        if options.candidate == 'g':
            d_hidden.mul_(torch.where(hidden >= 0, 1.0, c * (1 - c)))
        for value, target in zip((d_gate, d_hidden), out.path(p), strict=True):
            write_sequence(value, column, target)
