r"""Triton kernels of the minGRU scan; importing this module needs Triton.

Both passes are an affine scan along a path, h_t = keep_t h_{t-1} + add_t, where keep_t = 1 - z_t. Forward,
add_t = z_t c_t. Backward, from the last token on, r_t = keep_t s_t is r_t = keep_t r_{t+1} + keep_t dh_t,
because s_t = dh_t + r_{t+1}. ``triton_affine.py`` describes how programs share the work.
"""

# ruff: noqa: N803 (constants of a kernel and sizes are upper case)

from typing import NamedTuple

import triton
import triton.language as tl

from ..triton_affine import SHAPES, at, enter, exchange, load, locate, rows, start, start_dense
from ..triton_launch import Strides


class Map(NamedTuple):
    """A map (B, H, W, P, D) whose channels are contiguous."""

    data: tl.tensor
    strides: Strides


class PreActivations(NamedTuple):
    """Gate and hidden before their nonlinearities, or their gradients: two maps with the same strides."""

    gate: tl.tensor
    hidden: tl.tensor
    strides: Strides


@triton.jit
def _sigmoid(x):
    # exp2 and rsqrt are one instruction each; exp and a float32 division are five and eight.
    root = tl.rsqrt(1 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def _gates(x):
    """z = sigmoid(x) and keep = sigmoid(-x); 1 - z would lose all digits for an open gate."""
    power = x * -1.4426950408889634
    # Clamp below 2^127, so that keep = closed z is not inf * 0; tl.minimum would drop a NaN.
    closed = tl.exp2(tl.where(power > 126, 126, power))
    root = tl.rsqrt(1 + closed)
    z = root * root
    return z, closed * z


@triton.jit
def _candidate(x, LINEAR: tl.constexpr):
    if LINEAR:
        return x
    else:
        return tl.where(x >= 0, x + 0.5, _sigmoid(x))


@triton.jit(do_not_specialize=SHAPES)
def scan_forward(
    x, out, states, D, lanes, L, W, magic, shift, chunk, chunks, P: tl.constexpr, COLUMN: tl.constexpr,
    REVERSE: tl.constexpr, LINEAR: tl.constexpr, CHUNKED: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """h from x, a PreActivations; out is dense."""
    place = locate(L, W, magic, shift, D, P, COLUMN, REVERSE, LANES)
    row, time, end, advance = rows(L, chunk, CHUNKED, STEPS, ROWS)
    gate, hidden = start(x.gate, x.strides, place), start(x.hidden, x.strides, place)
    token = x.strides.token
    out = start_dense(out, L, P, D, place)
    lane = (place.image * P + place.path) * D + place.channel
    state = enter(states, row, lane, place.valid, chunks, lanes, CHUNKED)

    # Past the end, a gate of -inf gives z = 0, which keeps the state.
    gates = load(gate, token, time, end, place, float('-inf'), COLUMN, STEPS)
    hiddens = load(hidden, token, time, end, place, 0.0, COLUMN, STEPS)
    for _ in range(tl.cdiv(chunk, advance)):
        next_gates = load(gate, token, time + advance, end, place, float('-inf'), COLUMN, STEPS)
        next_hiddens = load(hidden, token, time + advance, end, place, 0.0, COLUMN, STEPS)
        keeps, adds = (), ()
        for i in tl.static_range(STEPS):
            z, keep = _gates(gates[i].to(tl.float32))
            keeps += (keep,)
            adds += (z * _candidate(hiddens[i].to(tl.float32), LINEAR),)
        if CHUNKED or ROWS == 1:
            h = state
        else:
            keep, add = keeps[0], adds[0]
            for i in tl.static_range(1, STEPS):
                keep *= keeps[i]
                add = keeps[i] * add + adds[i]
            h, state = exchange(keep, add, state, ROWS)
        for i in tl.static_range(STEPS):
            h = keeps[i] * h + adds[i]
            here = at(out, P * D, time, i, place.order, COLUMN)
            tl.store(here, h.to(out.dtype.element_ty), mask=(time + i < end) & place.valid)
        if CHUNKED or ROWS == 1:
            state = h
        time += advance
        gates, hiddens = next_gates, next_hiddens


@triton.jit
def _passed_on(grads, keeps, STEPS: tl.constexpr):
    """(keep, add) of a row of r_t = keep_t (r_{t+1} + dh_t)."""
    keep = keeps[0]
    add = keep * grads[0].to(tl.float32)
    for i in tl.static_range(1, STEPS):
        keep *= keeps[i]
        add = keeps[i] * (add + grads[i].to(tl.float32))
    return keep, add


@triton.jit(do_not_specialize=SHAPES)
def scan_backward(
    grad, x, h, out, states, D, lanes, L, W, magic, shift, chunk, chunks, P: tl.constexpr,
    COLUMN: tl.constexpr, REVERSE: tl.constexpr, LINEAR: tl.constexpr, CHUNKED: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """Gradients of x into out, both PreActivations, in reverse reading order; grad and h are dense.

    REVERSE is the complement of the forward pass's.
    """
    place = locate(L, W, magic, shift, D, P, COLUMN, REVERSE, LANES)
    row, time, end, advance = rows(L, chunk, CHUNKED, STEPS, ROWS)
    gate, hidden = start(x.gate, x.strides, place), start(x.hidden, x.strides, place)
    token = x.strides.token
    grad, h = start_dense(grad, L, P, D, place), start_dense(h, L, P, D, place)
    grad_gate, grad_hidden = start(out.gate, out.strides, place), start(out.hidden, out.strides, place)
    lane = (place.image * P + place.path) * D + place.channel
    state = enter(states, row, lane, place.valid, chunks, lanes, CHUNKED)

    gates = load(gate, token, time, end, place, float('-inf'), COLUMN, STEPS)
    grads = load(grad, P * D, time, end, place, 0.0, COLUMN, STEPS)
    hiddens = load(hidden, token, time, end, place, 0.0, COLUMN, STEPS)
    # The previous token of the forward pass is the next one here.
    befores = load(h, P * D, time + 1, L, place, 0.0, COLUMN, STEPS)
    for _ in range(tl.cdiv(chunk, advance)):
        then = time + advance
        next_gates = load(gate, token, then, end, place, float('-inf'), COLUMN, STEPS)
        next_grads = load(grad, P * D, then, end, place, 0.0, COLUMN, STEPS)
        next_hiddens = load(hidden, token, then, end, place, 0.0, COLUMN, STEPS)
        next_befores = load(h, P * D, then + 1, L, place, 0.0, COLUMN, STEPS)
        zs, keeps = (), ()
        for i in tl.static_range(STEPS):
            z, keep = _gates(gates[i].to(tl.float32))
            zs += (z,)
            keeps += (keep,)
        if CHUNKED or ROWS == 1:
            r = state
        else:
            keep, add = _passed_on(grads, keeps, STEPS)
            r, state = exchange(keep, add, state, ROWS)
        for i in tl.static_range(STEPS):
            value = hiddens[i].to(tl.float32)
            c = _candidate(value, LINEAR)
            s = grads[i].to(tl.float32) + r
            r = keeps[i] * s
            d_gate = r * zs[i] * (c - befores[i].to(tl.float32))
            d_hidden = s * zs[i]
            if not LINEAR:
                d_hidden = tl.where(value >= 0, d_hidden, d_hidden * c * (1 - c))
            mask = (time + i < end) & place.valid
            here = at(grad_gate, out.strides.token, time, i, place.order, COLUMN)
            tl.store(here, d_gate.to(grad_gate.dtype.element_ty), mask=mask)
            here = at(grad_hidden, out.strides.token, time, i, place.order, COLUMN)
            tl.store(here, d_hidden.to(grad_hidden.dtype.element_ty), mask=mask)
        if CHUNKED or ROWS == 1:
            state = r
        time = then
        gates, grads, hiddens, befores = next_gates, next_grads, next_hiddens, next_befores


@triton.jit(do_not_specialize=SHAPES)
def chunk_sums(
    gate, value, sums, D, lanes, L, W, magic, shift, chunk, chunks, P: tl.constexpr, COLUMN: tl.constexpr,
    REVERSE: tl.constexpr, LINEAR: tl.constexpr, BACKWARD: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """(keep, add) of each chunk into sums (2, chunks, lanes), from two Maps.

    ``value`` is hidden, or backward dL/dh. Chunks are read from their end, so that the next kernel finds
    their beginnings in the L2 cache.
    """
    place = locate(L, W, magic, shift, D, P, COLUMN, REVERSE, LANES)
    row, time, end, _ = rows(L, chunk, True, STEPS, ROWS)
    gate_start, value_start = start(gate.data, gate.strides, place), start(value.data, value.strides, place)
    keep = tl.full((ROWS, LANES), 1, tl.float32)
    add = tl.zeros((ROWS, LANES), tl.float32)

    tiles = tl.cdiv(chunk, STEPS)
    time += (tiles - 1) * STEPS
    gates = load(gate_start, gate.strides.token, time, end, place, float('-inf'), COLUMN, STEPS)
    values = load(value_start, value.strides.token, time, end, place, 0.0, COLUMN, STEPS)
    for n in range(tiles):
        time -= STEPS
        # After the last tile row 0 has time -STEPS: mask its tokens, which precede the sequence.
        more = tl.where(n + 1 < tiles, end, -STEPS)
        next_gates = load(gate_start, gate.strides.token, time, more, place, float('-inf'), COLUMN, STEPS)
        next_values = load(value_start, value.strides.token, time, more, place, 0.0, COLUMN, STEPS)
        for i in tl.static_range(1, STEPS + 1):
            z, kept = _gates(gates[STEPS - i].to(tl.float32))
            x = values[STEPS - i].to(tl.float32)
            if BACKWARD:
                keep *= kept
                add += keep * x
            else:
                add += keep * z * _candidate(x, LINEAR)
                keep *= kept
        gates, values = next_gates, next_values
    lane = (place.image * P + place.path) * D + place.channel
    here = sums + row.to(tl.int64) * lanes + lane
    tl.store(here, keep, mask=(row < chunks) & place.valid)
    tl.store(here + chunks.to(tl.int64) * lanes, add, mask=(row < chunks) & place.valid)
