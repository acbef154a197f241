r"""Triton kernels of the minGRU scan; importing this module needs Triton.

Both passes are an affine scan along a path, h_t = keep_t h_{t-1} + add_t, where keep_t = 1 - z_t. Forward,
add_t = z_t c_t. Backward, from the last token on, r_t = keep_t s_t is r_t = keep_t r_{t+1} + keep_t dh_t,
because s_t = dh_t + r_{t+1}.

A program owns LANES channels of one path of one image. Its tile is ROWS x LANES, and each row holds STEPS
successive tokens in registers while the loads of the next tile are in flight. There are two kinds of rows:

- cooperating: the rows hold neighbouring spans of tokens and exchange their (keep, add) once a tile, so that
  one sequence has ROWS x STEPS tokens in flight and every byte is read once;
- chunked: each row walks a chunk of its own, from the state that ``chunk_sums`` and ``chunk_states`` found.

A reading order is a matter of addresses: the number of a token is computed from its time, nothing is copied.
"""

# ruff: noqa: N803 (constants of a kernel and sizes are upper case)

import triton
import triton.language as tl

# Numbers that change from map to map: a value of theirs must not make a kernel of its own.
SHAPES = ('L', 'W', 'magic', 'shift', 'chunk', 'chunks')


@triton.jit
def _sigmoid(x):
    # One instruction each; exp and a division in float32 take five and eight, most of them for denormals.
    root = tl.rsqrt(1 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def _candidate(x, LINEAR: tl.constexpr):
    if LINEAR:
        return x
    else:
        return tl.where(x >= 0, x + 0.5, _sigmoid(x))


@triton.jit
def _locate(
    L,
    W,
    magic,
    shift,
    D,
    P: tl.constexpr,
    COLUMN: tl.constexpr,
    REVERSE: tl.constexpr,
    LANES: tl.constexpr,
):
    """Image, path, channels (1, LANES) and reading order of this program."""
    blocks = tl.cdiv(D, LANES)
    sequence = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * LANES + tl.arange(0, LANES)[None, :]
    path = sequence % P
    column = (COLUMN >> path) & 1
    reverse = (REVERSE >> path) & 1
    # A row path is a column path over a map of height infinity, where time // H = 0.
    order = (reverse * (L - 1), 1 - 2 * reverse, L // W, 1 + column * (W - 1), column * magic, shift)
    return (sequence // P).to(tl.int64), path.to(tl.int64), channel, order


@triton.jit
def _token(time, order, COLUMN: tl.constexpr):
    """Row-major number of the token read at ``time``; a column path reads (time % H) W + time // H."""
    first, sign, height, pitch, magic, shift = order
    if COLUMN:
        # time // H as a multiplication: a division is some twenty instructions.
        quotient = ((time.to(tl.int64) * magic) >> shift).to(tl.int32)
        time = (time - quotient * height) * pitch + quotient
    return first + sign * time


@triton.jit
def _at(pointer, stride, time, step: tl.constexpr, order, COLUMN: tl.constexpr):
    """Address of the token ``step`` after ``time``: along rows one product serves all steps."""
    if COLUMN:
        return pointer + _token(time + step, order, COLUMN).to(tl.int64) * stride
    else:
        start = pointer + _token(time, order, COLUMN).to(tl.int64) * stride
        return start + step * (order[1].to(tl.int64) * stride)


@triton.jit
def _load(pointer, stride, time, end, valid, fill, order, COLUMN: tl.constexpr, STEPS: tl.constexpr):
    """STEPS tokens from ``time`` (ROWS, 1) on, as a tuple of (ROWS, LANES); ``fill`` from ``end`` on."""
    steps = ()
    for i in tl.static_range(STEPS):
        here = _at(pointer, stride, time, i, order, COLUMN)
        steps += (tl.load(here, mask=(time + i < end) & valid, other=fill),)
    return steps


@triton.jit
def _then(keep, add, keep_before, add_before, keep_2, add_2, keep_before_2, add_before_2):
    """Compose two runs of rows, as (keep, add) of all their rows and of all but the last."""
    return keep * keep_2, keep_2 * add + add_2, keep * keep_before_2, keep_before_2 * add + add_before_2


@triton.jit
def _exchange(keep, add, state, ROWS: tl.constexpr):
    """States that enter the rows (ROWS, LANES) and that leaves the tile; ``state`` (1, LANES) enters it."""
    keep, add, keep_before, add_before = tl.associative_scan(
        (keep, add, tl.full(keep.shape, 1, tl.float32), tl.zeros(add.shape, tl.float32)), 0, _then
    )
    last = tl.arange(0, ROWS)[:, None] == ROWS - 1
    leaving = tl.sum(tl.where(last, keep * state + add, 0), 0, keep_dims=True)
    return keep_before * state + add_before, leaving


@triton.jit
def _rows(L, chunk, CHUNKED: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr):
    """Number, first time and end of each row (ROWS, 1), and the time from tile to tile."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    if CHUNKED:
        return row, row * chunk, tl.minimum(row * chunk + chunk, L), STEPS
    else:
        return row, row * STEPS, L, ROWS * STEPS


@triton.jit
def _enter(states, row, lane, valid, chunks, lanes, CHUNKED: tl.constexpr):
    """States before each chunked row, or before the first row, from ``states`` (chunks, lanes) or zero."""
    if states is None:
        return tl.zeros(lane.shape, tl.float32)
    elif CHUNKED:
        return tl.load(states + row.to(tl.int64) * lanes + lane, mask=(row < chunks) & valid, other=0.0)
    else:
        return tl.load(states + lane, mask=valid, other=0.0)


@triton.jit(do_not_specialize=SHAPES)
def scan_forward(
    gate,
    hidden,
    out,
    states,
    stride_b,
    stride_t,
    stride_p,
    D,
    lanes,
    L,
    W,
    magic,
    shift,
    chunk,
    chunks,
    P: tl.constexpr,
    COLUMN: tl.constexpr,
    REVERSE: tl.constexpr,
    LINEAR: tl.constexpr,
    CHUNKED: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """h from gate and hidden, which share their strides; out is dense."""
    batch, path, channel, order = _locate(L, W, magic, shift, D, P, COLUMN, REVERSE, LANES)
    row, time, end, advance = _rows(L, chunk, CHUNKED, STEPS, ROWS)
    valid = channel < D
    gate += batch * stride_b + path * stride_p + channel
    hidden += batch * stride_b + path * stride_p + channel
    out += batch * L * P * D + path * D + channel
    lane = (batch * P + path) * D + channel
    state = _enter(states, row, lane, valid, chunks, lanes, CHUNKED)

    # A gate of -inf keeps the state: z = 0.
    gates = _load(gate, stride_t, time, end, valid, float('-inf'), order, COLUMN, STEPS)
    hiddens = _load(hidden, stride_t, time, end, valid, 0.0, order, COLUMN, STEPS)
    for _ in range(tl.cdiv(chunk, advance)):
        next_gates = _load(gate, stride_t, time + advance, end, valid, float('-inf'), order, COLUMN, STEPS)
        next_hiddens = _load(hidden, stride_t, time + advance, end, valid, 0.0, order, COLUMN, STEPS)
        keeps, adds = (), ()
        for i in tl.static_range(STEPS):
            z = _sigmoid(gates[i].to(tl.float32))
            keeps += (1 - z,)
            adds += (z * _candidate(hiddens[i].to(tl.float32), LINEAR),)
        if CHUNKED or ROWS == 1:
            h = state
        else:
            keep, add = keeps[0], adds[0]
            for i in tl.static_range(1, STEPS):
                keep *= keeps[i]
                add = keeps[i] * add + adds[i]
            h, state = _exchange(keep, add, state, ROWS)
        for i in tl.static_range(STEPS):
            h = keeps[i] * h + adds[i]
            here = _at(out, P * D, time, i, order, COLUMN)
            tl.store(here, h.to(out.dtype.element_ty), mask=(time + i < end) & valid)
        if CHUNKED or ROWS == 1:
            state = h
        time += advance
        gates, hiddens = next_gates, next_hiddens


@triton.jit(do_not_specialize=SHAPES)
def scan_backward(
    grad,
    gate,
    hidden,
    h,
    grad_gate,
    grad_hidden,
    states,
    stride_b,
    stride_t,
    stride_p,
    grad_stride_b,
    grad_stride_t,
    grad_stride_p,
    D,
    lanes,
    L,
    W,
    magic,
    shift,
    chunk,
    chunks,
    P: tl.constexpr,
    COLUMN: tl.constexpr,
    REVERSE: tl.constexpr,
    LINEAR: tl.constexpr,
    CHUNKED: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Gradients, read from the last token on: REVERSE is the opposite of the forward pass's.

    gate and hidden share their strides, and so do their gradients; grad and h are dense.
    """
    batch, path, channel, order = _locate(L, W, magic, shift, D, P, COLUMN, REVERSE, LANES)
    row, time, end, advance = _rows(L, chunk, CHUNKED, STEPS, ROWS)
    valid = channel < D
    gate += batch * stride_b + path * stride_p + channel
    hidden += batch * stride_b + path * stride_p + channel
    grad += batch * L * P * D + path * D + channel
    h += batch * L * P * D + path * D + channel
    grad_gate += batch * grad_stride_b + path * grad_stride_p + channel
    grad_hidden += batch * grad_stride_b + path * grad_stride_p + channel
    lane = (batch * P + path) * D + channel
    state = _enter(states, row, lane, valid, chunks, lanes, CHUNKED)

    gates = _load(gate, stride_t, time, end, valid, float('-inf'), order, COLUMN, STEPS)
    grads = _load(grad, P * D, time, end, valid, 0.0, order, COLUMN, STEPS)
    hiddens = _load(hidden, stride_t, time, end, valid, 0.0, order, COLUMN, STEPS)
    # The token before, in the forward pass's order, is the next one in this.
    befores = _load(h, P * D, time + 1, L, valid, 0.0, order, COLUMN, STEPS)
    for _ in range(tl.cdiv(chunk, advance)):
        then = time + advance
        next_gates = _load(gate, stride_t, then, end, valid, float('-inf'), order, COLUMN, STEPS)
        next_grads = _load(grad, P * D, then, end, valid, 0.0, order, COLUMN, STEPS)
        next_hiddens = _load(hidden, stride_t, then, end, valid, 0.0, order, COLUMN, STEPS)
        next_befores = _load(h, P * D, then + 1, L, valid, 0.0, order, COLUMN, STEPS)
        zs = ()
        for i in tl.static_range(STEPS):
            zs += (_sigmoid(gates[i].to(tl.float32)),)
        if CHUNKED or ROWS == 1:
            r = state
        else:
            keep = 1 - zs[0]
            add = keep * grads[0].to(tl.float32)
            for i in tl.static_range(1, STEPS):
                keep *= 1 - zs[i]
                add = (1 - zs[i]) * (add + grads[i].to(tl.float32))
            r, state = _exchange(keep, add, state, ROWS)
        for i in tl.static_range(STEPS):
            x = hiddens[i].to(tl.float32)
            c = _candidate(x, LINEAR)
            s = grads[i].to(tl.float32) + r
            r = (1 - zs[i]) * s
            d_gate = r * zs[i] * (c - befores[i].to(tl.float32))
            d_hidden = s * zs[i]
            if not LINEAR:
                d_hidden = tl.where(x >= 0, d_hidden, d_hidden * c * (1 - c))
            mask = (time + i < end) & valid
            here = _at(grad_gate, grad_stride_t, time, i, order, COLUMN)
            tl.store(here, d_gate.to(grad_gate.dtype.element_ty), mask=mask)
            here = _at(grad_hidden, grad_stride_t, time, i, order, COLUMN)
            tl.store(here, d_hidden.to(grad_hidden.dtype.element_ty), mask=mask)
        if CHUNKED or ROWS == 1:
            state = r
        time = then
        gates, grads, hiddens, befores = next_gates, next_grads, next_hiddens, next_befores


@triton.jit(do_not_specialize=SHAPES)
def chunk_sums(
    gate,
    value,
    sums,
    stride_b,
    stride_t,
    stride_p,
    value_stride_b,
    value_stride_t,
    value_stride_p,
    D,
    lanes,
    L,
    W,
    magic,
    shift,
    chunk,
    chunks,
    P: tl.constexpr,
    COLUMN: tl.constexpr,
    REVERSE: tl.constexpr,
    LINEAR: tl.constexpr,
    BACKWARD: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """(keep, add) of each chunk into sums (2, chunks, lanes); value is hidden, or backward the gradient of h.

    Chunks are read from their end, so that the pass which follows finds their beginnings in the L2 cache.
    """
    batch, path, channel, order = _locate(L, W, magic, shift, D, P, COLUMN, REVERSE, LANES)
    row, time, end, _ = _rows(L, chunk, True, STEPS, ROWS)
    valid = channel < D
    gate += batch * stride_b + path * stride_p + channel
    value += batch * value_stride_b + path * value_stride_p + channel
    keep = tl.full((ROWS, LANES), 1, tl.float32)
    add = tl.zeros((ROWS, LANES), tl.float32)

    tiles = tl.cdiv(chunk, STEPS)
    time += (tiles - 1) * STEPS
    gates = _load(gate, stride_t, time, end, valid, float('-inf'), order, COLUMN, STEPS)
    values = _load(value, value_stride_t, time, end, valid, 0.0, order, COLUMN, STEPS)
    for tile in range(tiles):
        time -= STEPS
        # After the last tile the time of row 0 is -STEPS, and no token may pass for one of the sequence.
        more = tl.where(tile + 1 < tiles, end, -STEPS)
        next_gates = _load(gate, stride_t, time, more, valid, float('-inf'), order, COLUMN, STEPS)
        next_values = _load(value, value_stride_t, time, more, valid, 0.0, order, COLUMN, STEPS)
        for i in tl.static_range(1, STEPS + 1):
            z = _sigmoid(gates[STEPS - i].to(tl.float32))
            x = values[STEPS - i].to(tl.float32)
            if BACKWARD:
                keep *= 1 - z
                add += keep * x
            else:
                add += keep * z * _candidate(x, LINEAR)
                keep *= 1 - z
        gates, values = next_gates, next_values
    lane = (batch * P + path) * D + channel
    here = sums + row.to(tl.int64) * lanes + lane
    tl.store(here, keep, mask=(row < chunks) & valid)
    tl.store(here + chunks.to(tl.int64) * lanes, add, mask=(row < chunks) & valid)


@triton.jit(do_not_specialize=SHAPES)
def chunk_states(
    sums,
    first,
    lanes,
    chunks,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Replace the add of each chunk in sums (2, chunks, lanes) by the state that enters it."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)[None, :]
    valid = lane < lanes
    row = tl.arange(0, ROWS)[:, None] * STEPS
    state = _enter(first, row, lane, valid, 1, lanes, False)
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
        h, state = _exchange(keep, add, state, ROWS)
        for i in tl.static_range(STEPS):
            here = sums + (row + i + chunks).to(tl.int64) * lanes + lane
            tl.store(here, h, mask=(row + i < chunks) & valid)
            h = keeps[i] * h + adds[i]
        row += ROWS * STEPS
