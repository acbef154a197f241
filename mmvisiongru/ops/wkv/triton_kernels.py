r"""Triton kernels of Bi-WKV; importing this module needs Triton.

The tokens are cut into chunks of STEPS, which a thread holds in registers; a program owns a tile of ROWS
chunks and LANES channels of an image. ``totals`` sums what each chunk adds to the past of the next chunk and
to the future of the previous one, from which torch computes what enters each chunk, in float64. The other
kernels compute

K[z]_t = P[z]_t + F[z]_t + e^u z_t,   P[z]_t = sum_{i<t} e^{-w (t-1-i)} z_i,   F the same from the last token,

of pairs of tensors, z = [x v, x] with x = e^{k - top}, or [r, r y] with r = dL/dy / K[x]. A step keeps
e^{-w} = base - delta of a sum: base is 1 where e^{-w} is near 1, so that delta has all its digits. States are
(kinds, B, chunks, 2, D): past and future, and for the slopes by w their moments, sum d e^{-w d} z.
"""

# ruff: noqa: N803, RUF005 (constants and sizes are upper case; Triton joins tuples by + only)

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..triton_affine import at, load, locate, rows


class Map(NamedTuple):
    """A tensor (B, L, D) whose channels are contiguous: address and strides."""

    data: tl.tensor
    image: int
    token: int

    @classmethod
    def of(cls, x: Tensor) -> 'Map':
        """The tensor as a kernel argument."""
        return cls(x, *x.stride()[:2])


class Inputs(NamedTuple):
    """Tensors that all kernels read: keys, values, the largest key (B, D), and base and delta, (2, D)."""

    key: Map
    value: Map
    top: tl.tensor
    decay: tl.tensor


class Place(NamedTuple):
    """Work of a program: image, channels (1, LANES), reading order, times (ROWS, 1), masks and states."""

    image: tl.tensor
    channel: tl.tensor
    order: tuple
    time: tl.tensor
    end: tl.tensor
    valid: tl.tensor
    state: tl.tensor
    kept: tl.tensor


@triton.jit
def _place(L, D, chunks, STEPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    found = locate(L, L, magic=0, shift=0, D=D, P=1, COLUMN=0, REVERSE=0, LANES=LANES)
    row, time, end, _ = rows(L, STEPS, True, STEPS, ROWS)
    state = (found.image * chunks + row) * 2 * D + found.channel
    kept = (row < chunks) & found.valid
    return Place(found.image, found.channel, found.order, time, end, found.valid, state, kept)


@triton.jit
def _start(x: Map, place: Place):
    """Address of the first token of the image, in the program's channels."""
    return x.data + place.image * x.image + place.channel


@triton.jit
def _tokens(start, stride, place: Place, fill, STEPS: tl.constexpr):
    """The tokens of the chunks, as a tuple of (ROWS, LANES); ``fill`` after the last one."""
    return load(start, stride, place.time, place.end, place, fill, 0, STEPS)


@triton.jit
def _channels(x, place: Place):
    """One value per channel, from (D)."""
    return tl.load(x + place.channel, mask=place.valid, other=0.0)


@triton.jit
def _inputs(x: Inputs, place: Place, D, STEPS: tl.constexpr):
    """Keys and values of the chunks, and the largest key of each channel."""
    keys = _tokens(_start(x.key, place), x.key.token, place, float('-inf'), STEPS)
    values = _tokens(_start(x.value, place), x.value.token, place, 0.0, STEPS)
    return keys, values, _channels(x.top + place.image * D, place)


@triton.jit
def _pair(keys, values, top, STEPS: tl.constexpr):
    """[x v, x] of a tile; after the last token, keys of -inf give zeros."""
    products, weights = (), ()
    for i in tl.static_range(STEPS):
        x = tl.exp(keys[i].to(tl.float32) - top)
        products += (x * values[i].to(tl.float32),)
        weights += (x,)
    return products, weights


@triton.jit
def _decay(x: Inputs, place: Place, D, dtype: tl.constexpr):
    """(base, delta) of the channels, base as a truth value: it then takes no register."""
    return _channels(x.decay, place) > 0, _channels(x.decay + D, place).to(dtype)


@triton.jit
def _kept(state, decay):
    return tl.where(decay[0], state, 0.0) - decay[1] * state


@triton.jit
def _total(z, decay, STEPS: tl.constexpr):
    """Past and future that a chunk adds to its neighbours."""
    past = tl.zeros(z[0].shape, z[0].dtype)
    future = past
    for i in tl.static_range(STEPS):
        past = _kept(past, decay) + z[i]
        future = _kept(future, decay) + z[STEPS - 1 - i]
    return past, future


@triton.jit
def _moments(z, decay, STEPS: tl.constexpr):
    """Same as _total in float64, and the moments."""
    past = tl.zeros(z[0].shape, tl.float64)
    future, past_moment, future_moment = past, past, past
    for i in tl.static_range(STEPS):
        past_moment = _kept(past_moment + past, decay)
        future_moment = _kept(future_moment + future, decay)
        past = _kept(past, decay) + z[i].to(tl.float64)
        future = _kept(future, decay) + z[STEPS - 1 - i].to(tl.float64)
    return past, future, past_moment, future_moment


@triton.jit
def _state(states, kinds_stride, place: Place, kind, half):
    """Address of a state of the chunks: of the first (half 0) or the second (half D) tensor of a pair."""
    return states + kind * kinds_stride.to(tl.int64) + place.state + half


@triton.jit
def _entered(states, kinds_stride, place: Place, kind, half):
    return tl.load(_state(states, kinds_stride, place, kind, half), mask=place.kept, other=0.0)


@triton.jit
def _leave(found, states, kinds_stride, place: Place, half, KINDS: tl.constexpr):
    """Store what the chunks add to their neighbours."""
    for kind in tl.static_range(KINDS):
        tl.store(_state(states, kinds_stride, place, kind, half), found[kind], mask=place.kept)


@triton.jit
def _store(pointer, value, D, place: Place, i: tl.constexpr):
    """Store token i of the chunks; ``pointer`` is the first token of the image in a dense tensor."""
    inside = (place.time + i < place.end) & place.valid
    here = at(pointer, D, place.time, i, place.order, 0)
    tl.store(here, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _mix(z, states, kinds_stride, place: Place, half, bonus, decay, powers, STEPS: tl.constexpr):
    """K[z] of the chunks, given the states that enter them.

    These are scaled by e^{-w d}: in a recurrence, each token would round them.
    """
    entered_past = _entered(states, kinds_stride, place, 0, half)
    entered_future = _entered(states, kinds_stride, place, 1, half)
    sums = ()
    past = tl.zeros(z[0].shape, z[0].dtype)
    for i in tl.static_range(STEPS):
        sums += (past + powers[i] * entered_past + bonus * z[i],)
        past = _kept(past, decay) + z[i]
    future, out = tl.zeros(z[0].shape, z[0].dtype), ()
    for i in tl.static_range(STEPS - 1, -1, -1):
        out = (sums[i] + future + powers[STEPS - 1 - i] * entered_future,) + out
        future = _kept(future, decay) + z[i]
    return out


@triton.jit
def _mix_with_slopes(z, bonus, decay, entered, STEPS: tl.constexpr):
    """K[z] and -dK[z]/dw in float64, from the states that entered the chunks."""
    past, future, past_moment, future_moment = entered
    sums, slopes = (), ()
    for i in tl.static_range(STEPS):
        sums += (past + bonus * z[i].to(tl.float64),)
        slopes += (past_moment,)
        past_moment = _kept(past_moment + past, decay)
        past = _kept(past, decay) + z[i].to(tl.float64)
    out, out_slopes = (), ()
    for i in tl.static_range(STEPS - 1, -1, -1):
        out = (sums[i] + future,) + out
        out_slopes = (slopes[i] + future_moment,) + out_slopes
        future_moment = _kept(future_moment + future, decay)
        future = _kept(future, decay) + z[i].to(tl.float64)
    return out, out_slopes


@triton.jit(do_not_specialize=['L', 'chunks'])
def totals(
    x, states, D, L, chunks, kinds_stride, MOMENTS: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr
):  # fmt: skip
    """Totals of the pair [x v, x] of each chunk, with MOMENTS in float64."""
    place = _place(L, D, chunks, STEPS, ROWS, LANES)
    keys, values, top = _inputs(x, place, D, STEPS)
    pair = _pair(keys, values, top, STEPS)
    decay = _decay(x, place, D, states.dtype.element_ty)
    for half in tl.static_range(2):
        found = _moments(pair[half], decay, STEPS) if MOMENTS else _total(pair[half], decay, STEPS)
        _leave(found, states, kinds_stride, place, half * D, 4 if MOMENTS else 2)


@triton.jit
def _powers(powers, place: Place, D, STEPS: tl.constexpr):
    steps = ()
    for i in tl.static_range(STEPS):
        steps += (_channels(powers + i * D, place),)
    return steps


@triton.jit(do_not_specialize=['L', 'chunks'])
def average(
    x, bonus, powers, states, out, D, L, chunks, kinds_stride, STEPS: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr
):  # fmt: skip
    """y = K[x v] / K[x] into ``out``, which is dense."""
    place = _place(L, D, chunks, STEPS, ROWS, LANES)
    keys, values, top = _inputs(x, place, D, STEPS)
    products, weights = _pair(keys, values, top, STEPS)
    decay = _decay(x, place, D, tl.float32)
    own = _channels(bonus, place).to(tl.float32)
    steps = _powers(powers, place, D, STEPS)
    numerators = _mix(products, states, kinds_stride, place, 0, own, decay, steps, STEPS)
    denominators = _mix(weights, states, kinds_stride, place, D, own, decay, steps, STEPS)
    out += place.image * L * D + place.channel
    for i in tl.static_range(STEPS - 1, -1, -1):
        _store(out, numerators[i] / denominators[i], D, place, i)


@triton.jit(do_not_specialize=['L', 'chunks'])
def adjoint(
    grad, x, bonus, states, ratios, parts, ratio_states, D, L, chunks, kinds_stride, ratios_stride,
    STEPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """[r, r y] into ``ratios`` (2, B, L, D), their totals, and the share of each chunk in dw and du."""
    place = _place(L, D, chunks, STEPS, ROWS, LANES)
    keys, values, top = _inputs(x, place, D, STEPS)
    products, weights = _pair(keys, values, top, STEPS)
    decay, own = _decay(x, place, D, tl.float64), _channels(bonus, place)
    of_products, of_weights = (), ()
    for kind in tl.static_range(4):
        of_products += (_entered(states, kinds_stride, place, kind, 0),)
        of_weights += (_entered(states, kinds_stride, place, kind, D),)
    numerators, slopes = _mix_with_slopes(products, own, decay, of_products, STEPS)
    denominators, weight_slopes = _mix_with_slopes(weights, own, decay, of_weights, STEPS)
    start = _start(grad, place)
    ratios += place.image * L * D + place.channel
    dw = tl.zeros((ROWS, LANES), tl.float64)
    du = tl.zeros((ROWS, LANES), tl.float64)
    rs, ss = (), ()
    for i in tl.static_range(STEPS - 1, -1, -1):
        inside = (place.time + i < place.end) & place.valid
        y = numerators[i] / denominators[i]
        # Loaded here and not earlier: registers are full.
        g = tl.load(at(start, grad.token, place.time, i, place.order, 0), mask=inside, other=0.0)
        # Mask what follows the last token.
        r = tl.where(inside, g.to(tl.float64) / denominators[i], 0.0)
        y = tl.where(inside, y, 0.0)
        dw -= r * (slopes[i] - y * weight_slopes[i])
        du += r * (products[i].to(tl.float64) - y * weights[i].to(tl.float64))
        rs = (r.to(tl.float32),) + rs
        ss = ((r * y).to(tl.float32),) + ss
        here = at(ratios, D, place.time, i, place.order, 0)
        tl.store(here, rs[0], mask=inside)
        tl.store(here + ratios_stride, ss[0], mask=inside)
    narrow = (decay[0], decay[1].to(tl.float32))
    _leave(_total(rs, narrow, STEPS), ratio_states, kinds_stride, place, 0, 2)
    _leave(_total(ss, narrow, STEPS), ratio_states, kinds_stride, place, D, 2)
    tl.store(parts + place.state, dw, mask=place.kept)
    tl.store(parts + place.state + D, du * own, mask=place.kept)


@triton.jit(do_not_specialize=['L', 'chunks'])
def gradients(
    x, bonus, powers, ratios, ratio_states, grad_key, grad_value, D, L, chunks, kinds_stride, ratios_stride,
    STEPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """dv = x K[r] and dk = x (v K[r] - K[r y]), dense."""
    place = _place(L, D, chunks, STEPS, ROWS, LANES)
    keys, values, top = _inputs(x, place, D, STEPS)
    ratios += place.image * L * D + place.channel
    rs = _tokens(ratios, D, place, 0.0, STEPS)
    ss = _tokens(ratios + ratios_stride, D, place, 0.0, STEPS)
    decay = _decay(x, place, D, tl.float32)
    own = _channels(bonus, place).to(tl.float32)
    steps = _powers(powers, place, D, STEPS)
    krs = _mix(rs, ratio_states, kinds_stride, place, 0, own, decay, steps, STEPS)
    kss = _mix(ss, ratio_states, kinds_stride, place, D, own, decay, steps, STEPS)
    products, weights = _pair(keys, values, top, STEPS)
    grad_key += place.image * L * D + place.channel
    grad_value += place.image * L * D + place.channel
    for i in tl.static_range(STEPS - 1, -1, -1):
        _store(grad_key, products[i] * krs[i] - weights[i] * kss[i], D, place, i)
        _store(grad_value, weights[i] * krs[i], D, place, i)
