r"""Affine scans along the paths of a map, for Triton kernels; importing this module needs Triton.

h_t = keep_t h_{t-1} + add_t.  A program owns LANES channels of one path of one image. Its tile is
ROWS x LANES, and each row holds STEPS consecutive tokens in registers while the next tile is being loaded.
There are two kinds of rows:

- cooperating: rows hold adjacent spans of tokens and exchange their (keep, add) once per tile, so that a
  sequence has ROWS x STEPS tokens in flight and every byte is read once;
- chunked: each row scans a chunk of its own, from the state that ``chunk_sums`` and ``chunk_states`` found.

The reading order only changes addresses: a token's position is computed from its time, and nothing is copied.
"""

# ruff: noqa: N803 (constants of a kernel and sizes are upper case)

from typing import NamedTuple

import triton
import triton.language as tl

# Arguments that vary with the map: do not specialise kernels on their values. They are separate arguments,
# because Triton (3.3 to 3.9) ignores do_not_specialize inside a tuple. Constants are separate, too, because a
# tuple of them would be hashed in every launch.
SHAPES = ('L', 'W', 'magic', 'shift', 'chunk', 'chunks')


class Place(NamedTuple):
    """Work of a program: image, path, channels (1, LANES) with their mask, and reading order."""

    image: tl.tensor
    path: tl.tensor
    channel: tl.tensor
    valid: tl.tensor
    order: tuple


@triton.jit
def locate(
    L, W, magic, shift, D, P: tl.constexpr, COLUMN: tl.constexpr, REVERSE: tl.constexpr, LANES: tl.constexpr
):
    """The Place of this program."""
    blocks = tl.cdiv(D, LANES)
    sequence = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * LANES + tl.arange(0, LANES)[None, :]
    path = sequence % P
    column = (COLUMN >> path) & 1
    reverse = (REVERSE >> path) & 1
    # A row path is a column path over a map of height infinity, where time // H = 0.
    order = (reverse * (L - 1), 1 - 2 * reverse, L // W, 1 + column * (W - 1), column * magic, shift)
    return Place((sequence // P).to(tl.int64), path.to(tl.int64), channel, channel < D, order)


@triton.jit
def start(pointer, strides, place):
    """Address of token 0 in a map (B, H, W, P, D) with ``strides`` of image, token and path."""
    return pointer + (place.image * strides.image + place.path * strides.path + place.channel)


@triton.jit
def start_dense(pointer, L, P, D, place):
    """Same as :func:`start`, for a dense map."""
    return pointer + (place.image * L * P * D + place.path * D + place.channel)


@triton.jit
def _token(time, order, COLUMN: tl.constexpr):
    """Row-major position of the token read at ``time``; for columns (time % H) W + time // H."""
    first, sign, height, pitch, magic, shift = order
    if COLUMN:
        # time // H as a multiplication: a division takes some twenty instructions.
        quotient = ((time.to(tl.int64) * magic) >> shift).to(tl.int32)
        time = (time - quotient * height) * pitch + quotient
    return first + sign * time


@triton.jit
def at(pointer, stride, time, step: tl.constexpr, order, COLUMN: tl.constexpr):
    """Address of the token ``step`` after ``time``; along rows all steps share one product."""
    if COLUMN:
        return pointer + _token(time + step, order, COLUMN).to(tl.int64) * stride
    else:
        start = pointer + _token(time, order, COLUMN).to(tl.int64) * stride
        return start + step * (order[1].to(tl.int64) * stride)


@triton.jit
def load(pointer, stride, time, end, place, fill, COLUMN: tl.constexpr, STEPS: tl.constexpr):
    """STEPS tokens from ``time`` (ROWS, 1), as a tuple of (ROWS, LANES); ``fill`` at and after ``end``."""
    steps = ()
    for i in tl.static_range(STEPS):
        here = at(pointer, stride, time, i, place.order, COLUMN)
        steps += (tl.load(here, mask=(time + i < end) & place.valid, other=fill),)
    return steps


@triton.jit
def _then(keep, add, keep_before, add_before, keep_2, add_2, keep_before_2, add_before_2):
    """Compose two runs of rows, each given by (keep, add) of all its rows and of all but the last."""
    return keep * keep_2, keep_2 * add + add_2, keep * keep_before_2, keep_before_2 * add + add_before_2


@triton.jit
def exchange(keep, add, state, ROWS: tl.constexpr):
    """States entering the rows (ROWS, LANES) and the one leaving the tile; ``state`` (1, LANES) enters it."""
    keep, add, keep_before, add_before = tl.associative_scan(
        (keep, add, tl.full(keep.shape, 1, tl.float32), tl.zeros(add.shape, tl.float32)), 0, _then
    )
    last = tl.arange(0, ROWS)[:, None] == ROWS - 1
    leaving = tl.sum(tl.where(last, keep * state + add, 0), 0, keep_dims=True)
    return keep_before * state + add_before, leaving


@triton.jit
def rows(L, chunk, CHUNKED: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr):
    """Index, first time and end of each row (ROWS, 1), and the time between tiles."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    if CHUNKED:
        return row, row * chunk, tl.minimum(row * chunk + chunk, L), STEPS
    else:
        return row, row * STEPS, L, ROWS * STEPS


@triton.jit
def enter(states, row, lane, valid, chunks, lanes, CHUNKED: tl.constexpr):
    """State before each chunked row, or before the first row: from ``states`` (chunks, lanes), or zero."""
    if states is None:
        return tl.zeros(lane.shape, tl.float32)
    elif CHUNKED:
        return tl.load(states + row.to(tl.int64) * lanes + lane, mask=(row < chunks) & valid, other=0.0)
    else:
        return tl.load(states + lane, mask=valid, other=0.0)


@triton.jit(do_not_specialize=SHAPES)
def chunk_states(sums, first, lanes, chunks, STEPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Replace add in sums (2, chunks, lanes) by the state that enters each chunk."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)[None, :]
    valid = lane < lanes
    row = tl.arange(0, ROWS)[:, None] * STEPS
    state = enter(first, row, lane, valid, 1, lanes, False)
    for _ in range(tl.cdiv(chunks, ROWS * STEPS)):
        keeps, adds = (), ()
        for i in tl.static_range(STEPS):
            here = sums + (row + i).to(tl.int64) * lanes + lane
            mask = (row + i < chunks) & valid
            keeps += (tl.load(here, mask=mask, other=1.0),)
            adds += (tl.load(here + chunks.to(tl.int64) * lanes, mask=mask, other=0.0),)
        keep, add = keeps[0], adds[0]
        for i in tl.static_range(1, STEPS):
            keep *= keeps[i]
            add = keeps[i] * add + adds[i]
        h, state = exchange(keep, add, state, ROWS)
        for i in tl.static_range(STEPS):
            here = sums + (row + i + chunks).to(tl.int64) * lanes + lane
            tl.store(here, h, mask=(row + i < chunks) & valid)
            h = keeps[i] * h + adds[i]
        row += ROWS * STEPS
