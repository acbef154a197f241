r"""Torch backend: a two-level scan in linear space, for any device, dtype and length.

L tokens are cut into n chunks of k = floor(sqrt(L)) tokens and a tail. Every chunk is scanned at the same
time, k steps deep, for its end state and the product of its (1 - z); n steps carry the state from chunk to
chunk; a second k steps write every h. Only 3 sqrt(L) operations follow one another, each on B n D
elements, and nothing but z and c is stored. Linear space is well conditioned (0 < 1 - z < 1): no log, no
cumulative sum that grows with L.
"""

from math import isqrt

import torch
from torch import Tensor

from ..paths import as_sequence, parse_paths, write_sequence
from .reference import accumulation_dtype, steps


def unsupported(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Runs everywhere."""
    return []


def _candidate(hidden: Tensor, candidate: str) -> Tensor:
    """g(x) without a branch: min(sigmoid(x), 0.5) + max(x, 0)."""
    if candidate == 'linear':
        return hidden
    return torch.sigmoid(hidden).clamp_(max=0.5).add_(hidden.clamp(min=0))


def _split(x: Tensor):
    """Cut (B, L, D) into whole chunks (B, n, k, D) and a tail (B, L - n k, D)."""
    chunk = max(1, isqrt(x.size(1)))
    whole = x.size(1) - x.size(1) % chunk
    return x[:, :whole].unflatten(1, (whole // chunk, chunk)), x[:, whole:]


def _carry(end: Tensor, keep: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """Turn chunk ends (B, n, D) of zero-started chunks into the state that enters each chunk, in place.

    ``state`` (B, D) enters the first chunk read and leaves as the state after the last one.
    """
    for i in steps(end.size(1), reverse):
        after = torch.addcmul(end[:, i], keep[:, i], state)
        end[:, i] = state
        state.copy_(after)
    return end


def _forward_tokens(z: Tensor, c: Tensor, out: Tensor, state: Tensor, reverse: bool) -> None:
    """Scan the second to last dim token by token; ``state`` enters and leaves in place."""
    for t in steps(z.size(-2), reverse):
        state.lerp_(c[..., t, :], z[..., t, :])
        out[..., t, :] = state


def _scan(z: Tensor, c: Tensor, out: Tensor, state: Tensor, reverse: bool) -> None:
    (z_chunks, z_tail), (c_chunks, c_tail), (out_chunks, out_tail) = map(_split, (z, c, out))
    end = torch.zeros_like(z_chunks[:, :, 0])
    keep = torch.ones_like(end)
    for t in steps(z_chunks.size(2), reverse):
        end.lerp_(c_chunks[:, :, t], z_chunks[:, :, t])
        keep.addcmul_(keep, z_chunks[:, :, t], value=-1)
    if reverse:
        _forward_tokens(z_tail, c_tail, out_tail, state, reverse)
    _forward_tokens(z_chunks, c_chunks, out_chunks, _carry(end, keep, state, reverse), reverse)
    if not reverse:
        _forward_tokens(z_tail, c_tail, out_tail, state, reverse)


def forward(
    gate: Tensor, hidden: Tensor, out: Tensor, paths: str, candidate: str, state: Tensor | None = None
) -> None:
    """Scan each path p of gate, hidden (B, H, W, P, D) into ``out``, from ``state`` (B, P, D) or from 0."""
    if not gate.numel():
        return
    acc = accumulation_dtype(gate.dtype)
    for p, (column, reverse) in enumerate(parse_paths(paths)):
        z = torch.sigmoid(as_sequence(gate[..., p, :], column).to(acc))
        c = _candidate(as_sequence(hidden[..., p, :], column).to(acc), candidate)
        # A copy: the scan leaves its last state there.
        start = z.new_zeros(z.size(0), z.size(2)) if state is None else state[:, p].to(acc, copy=True)
        if column:
            h = torch.empty_like(z)
            _scan(z, c, h, start, reverse)
            write_sequence(h, column, out[..., p, :])
        else:
            _scan(z, c, as_sequence(out[..., p, :], column), start, reverse)


def _adjoint_tokens(z: Tensor, dh: Tensor, s: Tensor, carry: Tensor, reverse: bool) -> None:
    """s_t = dh_t + carry,  carry = (1 - z_t) s_t, token by token; ``carry`` is updated in place."""
    for t in steps(z.size(-2), reverse):
        carry.add_(dh[..., t, :])
        s[..., t, :] = carry
        carry.addcmul_(carry, z[..., t, :], value=-1)


def _adjoint_scan(z: Tensor, dh: Tensor, reverse: bool) -> Tensor:
    """s_t = dh_t + (1 - z_{t+1}) s_{t+1}, from the last address to the first if ``reverse``."""
    s = torch.empty_like(z)
    (z_chunks, z_tail), (dh_chunks, dh_tail), (s_chunks, s_tail) = map(_split, (z, dh, s))
    carry = z.new_zeros(z.size(0), z.size(2))
    end = torch.zeros_like(z_chunks[:, :, 0])
    keep = torch.ones_like(end)
    for t in steps(z_chunks.size(2), reverse):
        end.add_(dh_chunks[:, :, t])
        end.addcmul_(end, z_chunks[:, :, t], value=-1)
        keep.addcmul_(keep, z_chunks[:, :, t], value=-1)
    if reverse:
        _adjoint_tokens(z_tail, dh_tail, s_tail, carry, reverse)
    _adjoint_tokens(z_chunks, dh_chunks, s_chunks, _carry(end, keep, carry, reverse), reverse)
    if not reverse:
        _adjoint_tokens(z_tail, dh_tail, s_tail, carry, reverse)
    return s


def _previous(h: Tensor, reverse: bool) -> Tensor:
    """h_{t-1} in reading order, zero before the first token."""
    first = torch.zeros_like(h[:, :1])
    return torch.cat((h[:, 1:], first) if reverse else (first, h[:, :-1]), dim=1)


def backward(
    grad: Tensor,
    gate: Tensor,
    hidden: Tensor,
    h: Tensor,
    grad_gate: Tensor,
    grad_hidden: Tensor,
    paths: str,
    candidate: str,
) -> None:
    """Write the gradients of :func:`forward` given dL/dh; every tensor is (B, H, W, P, D)."""
    if not gate.numel():
        return
    acc = accumulation_dtype(gate.dtype)
    for p, (column, reverse) in enumerate(parse_paths(paths)):
        dh, hs, x = (as_sequence(t[..., p, :], column).to(acc) for t in (grad, h, hidden))
        z = torch.sigmoid(as_sequence(gate[..., p, :], column).to(acc))
        c = _candidate(x, candidate)
        d_hidden = _adjoint_scan(z, dh, not reverse).mul_(z)
        d_gate = (c - _previous(hs, reverse)).mul_(d_hidden).mul_(1 - z)
        if candidate == 'g':
            d_hidden.mul_(torch.where(x >= 0, 1.0, c * (1 - c)))
        write_sequence(d_gate, column, grad_gate[..., p, :])
        write_sequence(d_hidden, column, grad_hidden[..., p, :])
