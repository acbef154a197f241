r"""Triton kernels of Bi-WKV; importing this module needs Triton.

The tokens are cut into chunks of STEPS, which a thread holds in registers: a program owns a tile of ROWS
chunks and LANES channels of an image. ``totals`` finds what each chunk adds to the past of the next and to
the future of the one before; what enters a chunk is found outside, in float64. The others then take

K[z]_t = P[z]_t + F[z]_t + e^u z_t,   P[z]_t = sum_{i<t} e^{-w (t-1-i)} z_i,   F the same from the last token,

of pairs of tensors, z = [x v, x] with x = e^{k - top}, or [r, r y] with r = dL/dy / K[x]. A step keeps
1 - delta of a sum, where delta = 1 - e^{-w} has all its digits. States are (kinds, B, chunks, 2, D): past and
future, and for the slopes by w their moments, sum d e^{-w d} z.
"""

# ruff: noqa: N803 (constants of a kernel and sizes are upper case)

import triton
import triton.language as tl

from ..triton_affine import at, load, locate, rows


@triton.jit
def _place(L, D, chunks, STEPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Image, channels (1, LANES), reading order, times (ROWS, 1), masks, and where the states are."""
    image, _, channel, order = locate(L, L, 0, 0, D, 1, 0, 0, LANES)
    row, time, end, _ = rows(L, STEPS, True, STEPS, ROWS)
    state = (image * chunks + row) * 2 * D + channel
    return image, channel, order, time, end, channel < D, state, (row < chunks) & (channel < D)


@triton.jit
def _pair(keys, values, top, STEPS: tl.constexpr):
    """[x v, x] of the tokens of a tile; a key of -inf, after the last token, gives zeros."""
    products, weights = (), ()
    for i in tl.static_range(STEPS):
        x = tl.exp(keys[i].to(tl.float32) - top)
        products += (x * values[i].to(tl.float32),)
        weights += (x,)
    return products, weights


@triton.jit
def _total(z, delta, STEPS: tl.constexpr):
    """Past and future that the tokens of a chunk leave."""
    past = tl.zeros(z[0].shape, z[0].dtype)
    future = past
    for i in tl.static_range(STEPS):
        past = past - delta * past + z[i]
        future = future - delta * future + z[STEPS - 1 - i]
    return past, future


@triton.jit
def _moments(z, delta, STEPS: tl.constexpr):
    """As _total in float64, and the moments."""
    past = tl.zeros(z[0].shape, tl.float64)
    future, past_moment, future_moment = past, past, past
    for i in tl.static_range(STEPS):
        past_moment = past_moment + past - delta * (past_moment + past)
        future_moment = future_moment + future - delta * (future_moment + future)
        past = past - delta * past + z[i].to(tl.float64)
        future = future - delta * future + z[STEPS - 1 - i].to(tl.float64)
    return past, future, past_moment, future_moment


@triton.jit
def _mix(z, bonus, delta, powers, entered_past, entered_future, STEPS: tl.constexpr):
    """K[z] of a chunk. What entered it goes in by e^{-w d}: in a sum it would be rounded with each token."""
    sums = ()
    past = tl.zeros(z[0].shape, z[0].dtype)
    for i in tl.static_range(STEPS):
        sums += (past + powers[i] * entered_past + bonus * z[i],)
        past = past - delta * past + z[i]
    future, out = tl.zeros(z[0].shape, z[0].dtype), ()
    for i in tl.static_range(STEPS):
        out += (sums[STEPS - 1 - i] + future + powers[i] * entered_future,)
        future = future - delta * future + z[STEPS - 1 - i]
    return out


@triton.jit
def _mix_with_slopes(z, bonus, delta, past, future, past_moment, future_moment, STEPS: tl.constexpr):
    """K[z] and -dK[z]/dw in float64, from the states that enter the chunk; last token first, like _mix."""
    sums, slopes = (), ()
    for i in tl.static_range(STEPS):
        sums += (past + bonus * z[i].to(tl.float64),)
        slopes += (past_moment,)
        past_moment = past_moment + past - delta * (past_moment + past)
        past = past - delta * past + z[i].to(tl.float64)
    out, out_slopes = (), ()
    for i in tl.static_range(STEPS):
        out += (sums[STEPS - 1 - i] + future,)
        out_slopes += (slopes[STEPS - 1 - i] + future_moment,)
        future_moment = future_moment + future - delta * (future_moment + future)
        future = future - delta * future + z[STEPS - 1 - i].to(tl.float64)
    return out, out_slopes


@triton.jit
def _read(states, kind, state, kinds_stride, half, mask):
    return tl.load(states + kind * kinds_stride.to(tl.int64) + state + half, mask=mask, other=0.0)


@triton.jit(do_not_specialize=['L', 'chunks'])
def totals(
    key,
    value,
    top,
    delta,
    states,
    key_b,
    key_t,
    value_b,
    value_t,
    D,
    L,
    chunks,
    kinds_stride,
    MOMENTS: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Totals of the pair [x v, x] of each chunk, with MOMENTS in float64."""
    image, channel, order, time, end, valid, state, kept = _place(L, D, chunks, STEPS, ROWS, LANES)
    keys = load(key + image * key_b + channel, key_t, time, end, valid, float('-inf'), order, 0, STEPS)
    values = load(value + image * value_b + channel, value_t, time, end, valid, 0.0, order, 0, STEPS)
    highest = tl.load(top + image * D + channel, mask=valid, other=0.0)
    off = tl.load(delta + channel, mask=valid, other=0.0).to(states.dtype.element_ty)
    pair = _pair(keys, values, highest, STEPS)
    for half in tl.static_range(2):
        found = _moments(pair[half], off, STEPS) if MOMENTS else _total(pair[half], off, STEPS)
        for kind in tl.static_range(4 if MOMENTS else 2):
            tl.store(states + kind * kinds_stride.to(tl.int64) + state + half * D, found[kind], mask=kept)


@triton.jit
def _powers(powers, channel, D, valid, STEPS: tl.constexpr):
    steps = ()
    for i in tl.static_range(STEPS):
        steps += (tl.load(powers + i * D + channel, mask=valid, other=0.0),)
    return steps


@triton.jit(do_not_specialize=['L', 'chunks'])
def average(
    key,
    value,
    top,
    delta,
    bonus,
    powers,
    states,
    out,
    key_b,
    key_t,
    value_b,
    value_t,
    D,
    L,
    chunks,
    kinds_stride,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """y = K[x v] / K[x] into ``out``, which is dense."""
    image, channel, order, time, end, valid, state, kept = _place(L, D, chunks, STEPS, ROWS, LANES)
    keys = load(key + image * key_b + channel, key_t, time, end, valid, float('-inf'), order, 0, STEPS)
    values = load(value + image * value_b + channel, value_t, time, end, valid, 0.0, order, 0, STEPS)
    highest = tl.load(top + image * D + channel, mask=valid, other=0.0)
    off = tl.load(delta + channel, mask=valid, other=0.0).to(tl.float32)
    own = tl.load(bonus + channel, mask=valid, other=0.0).to(tl.float32)
    steps = _powers(powers, channel, D, valid, STEPS)
    products, weights = _pair(keys, values, highest, STEPS)
    past = _read(states, 0, state, kinds_stride, 0, kept)
    future = _read(states, 1, state, kinds_stride, 0, kept)
    numerators = _mix(products, own, off, steps, past, future, STEPS)
    past = _read(states, 0, state, kinds_stride, D, kept)
    future = _read(states, 1, state, kinds_stride, D, kept)
    denominators = _mix(weights, own, off, steps, past, future, STEPS)
    out += image * L * D + channel
    for i in tl.static_range(STEPS):
        y = numerators[i] / denominators[i]
        here = at(out, D, time, STEPS - 1 - i, order, 0)
        tl.store(here, y.to(out.dtype.element_ty), mask=(time + STEPS - 1 - i < end) & valid)


@triton.jit(do_not_specialize=['L', 'chunks'])
def adjoint(
    grad,
    key,
    value,
    top,
    delta,
    bonus,
    states,
    ratios,
    parts,
    ratio_states,
    grad_b,
    grad_t,
    key_b,
    key_t,
    value_b,
    value_t,
    D,
    L,
    chunks,
    kinds_stride,
    ratios_stride,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """[r, r y] into ``ratios`` (2, B, L, D), their totals, and what each chunk adds to dw and du."""
    image, channel, order, time, end, valid, state, kept = _place(L, D, chunks, STEPS, ROWS, LANES)
    keys = load(key + image * key_b + channel, key_t, time, end, valid, float('-inf'), order, 0, STEPS)
    values = load(value + image * value_b + channel, value_t, time, end, valid, 0.0, order, 0, STEPS)
    highest = tl.load(top + image * D + channel, mask=valid, other=0.0)
    off = tl.load(delta + channel, mask=valid, other=0.0)
    own = tl.load(bonus + channel, mask=valid, other=0.0)
    products, weights = _pair(keys, values, highest, STEPS)
    entered = ()
    for n in tl.static_range(8):
        entered += (_read(states, n % 4, state, kinds_stride, n // 4 * D, kept),)
    numerators, slopes = _mix_with_slopes(
        products, own, off, entered[0], entered[1], entered[2], entered[3], STEPS
    )
    denominators, weight_slopes = _mix_with_slopes(
        weights, own, off, entered[4], entered[5], entered[6], entered[7], STEPS
    )
    grad += image * grad_b + channel
    ratios += image * L * D + channel
    dw = tl.zeros((ROWS, LANES), tl.float64)
    du = tl.zeros((ROWS, LANES), tl.float64)
    rs, ss = (), ()
    for i in tl.static_range(STEPS):
        inside = (time + STEPS - 1 - i < end) & valid
        y = numerators[i] / denominators[i]
        # Read where it is used: the registers are full.
        g = tl.load(at(grad, grad_t, time, STEPS - 1 - i, order, 0), mask=inside, other=0.0)
        # After the last token nothing may count.
        r = tl.where(inside, g.to(tl.float64) / denominators[i], 0.0)
        y = tl.where(inside, y, 0.0)
        dw -= r * (slopes[i] - y * weight_slopes[i])
        x = weights[STEPS - 1 - i].to(tl.float64)
        du += r * (products[STEPS - 1 - i].to(tl.float64) - y * x)
        here = at(ratios, D, time, STEPS - 1 - i, order, 0)
        rs += (r.to(tl.float32),)
        ss += ((r * y).to(tl.float32),)
        tl.store(here, rs[i], mask=inside)
        tl.store(here + ratios_stride, ss[i], mask=inside)
    # They were read from the last token on, so that past and future are each other's.
    r_future, r_past = _total(rs, off.to(tl.float32), STEPS)
    s_future, s_past = _total(ss, off.to(tl.float32), STEPS)
    tl.store(ratio_states + state, r_past, mask=kept)
    tl.store(ratio_states + state + D, s_past, mask=kept)
    tl.store(ratio_states + kinds_stride + state, r_future, mask=kept)
    tl.store(ratio_states + kinds_stride + state + D, s_future, mask=kept)
    tl.store(parts + state, dw, mask=kept)
    tl.store(parts + state + D, du * own, mask=kept)


@triton.jit(do_not_specialize=['L', 'chunks'])
def gradients(
    key,
    value,
    top,
    delta,
    bonus,
    powers,
    ratios,
    ratio_states,
    grad_key,
    grad_value,
    key_b,
    key_t,
    value_b,
    value_t,
    D,
    L,
    chunks,
    kinds_stride,
    ratios_stride,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """dv = x K[r] and dk = x (v K[r] - K[r y]), dense."""
    image, channel, order, time, end, valid, state, kept = _place(L, D, chunks, STEPS, ROWS, LANES)
    keys = load(key + image * key_b + channel, key_t, time, end, valid, float('-inf'), order, 0, STEPS)
    values = load(value + image * value_b + channel, value_t, time, end, valid, 0.0, order, 0, STEPS)
    ratios += image * L * D + channel
    rs = load(ratios, D, time, end, valid, 0.0, order, 0, STEPS)
    ss = load(ratios + ratios_stride, D, time, end, valid, 0.0, order, 0, STEPS)
    highest = tl.load(top + image * D + channel, mask=valid, other=0.0)
    off = tl.load(delta + channel, mask=valid, other=0.0).to(tl.float32)
    own = tl.load(bonus + channel, mask=valid, other=0.0).to(tl.float32)
    steps = _powers(powers, channel, D, valid, STEPS)
    past = _read(ratio_states, 0, state, kinds_stride, 0, kept)
    future = _read(ratio_states, 1, state, kinds_stride, 0, kept)
    krs = _mix(rs, own, off, steps, past, future, STEPS)
    past = _read(ratio_states, 0, state, kinds_stride, D, kept)
    future = _read(ratio_states, 1, state, kinds_stride, D, kept)
    kss = _mix(ss, own, off, steps, past, future, STEPS)
    products, weights = _pair(keys, values, highest, STEPS)
    grad_key += image * L * D + channel
    grad_value += image * L * D + channel
    for i in tl.static_range(STEPS):
        mask = (time + STEPS - 1 - i < end) & valid
        dk = products[STEPS - 1 - i] * krs[i] - weights[STEPS - 1 - i] * kss[i]
        tl.store(at(grad_key, D, time, STEPS - 1 - i, order, 0), dk.to(grad_key.dtype.element_ty), mask=mask)
        dv = weights[STEPS - 1 - i] * krs[i]
        tl.store(
            at(grad_value, D, time, STEPS - 1 - i, order, 0), dv.to(grad_value.dtype.element_ty), mask=mask
        )
