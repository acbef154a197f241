r"""Torch backend: Bi-WKV in linear time by chunks and triangular matrices, for any device, dtype and length.

With x_t = e^{k_t - m}, m = max_t k_t, and z = [x v, x], a chunk of n tokens needs

K[z]_j = e^{-w(j-1)} (sum_{i<j} e^{wi} z_i + past) + e^{w(j+1)} (sum_{i>j} e^{-wi} z_i + future) + e^u z_j

where the sums are products with a strictly triangular matrix of ones, shared by all channels. They subtract
nothing, so that small terms keep their digits. past and future are carried from the other chunks by a
cumulative sum in float64. The tables of exponents are computed in float64, too: a rounded decay to the power
of T has no digits. ``LIMIT`` bounds the exponents.

Backward, K is its own transpose: K of [r, r y], r = dL/dy / D. The derivative of K by w has |t - i| - 1 in
the triangular matrix. It takes float64: where far tokens dominate, dw is a small difference of large sums.

Tokens are processed in tiles that fit in the cache.
"""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import accumulation_dtype
from ..backends import runs_everywhere as unsupported
from ..chunking import before
from .interface import LIMIT, PIECES, Wkv, piece_length

__all__ = ['LIMIT', 'backward', 'forward', 'unsupported']

CHUNK = 64  # tokens
TILE = 1 << 17  # elements of z


class _Carries(NamedTuple):
    """Sums over the chunks before and after each chunk, (B, N, 2, C), and their first moments."""

    past: Tensor
    future: Tensor
    past_moments: Tensor | None
    future_moments: Tensor | None

    def of(self, tile) -> list[Tensor]:
        """Carries of a tile, broadcastable to (b, chunks, n, 2, C)."""
        return [x[tile].unsqueeze(2) for x in self if x is not None]


class _Chunks:
    """Sums over a sequence cut into N chunks of n tokens, the last one padded, and their tables of exponents.

    A tile is a slice of images and one of chunks; z are its pairs (b, chunks, n, 2, C).
    """

    def __init__(self, x: Wkv, distance: str, dtype: torch.dtype):
        B, self.T, C = x.k.shape
        self.dtype = dtype
        # A quarter of the tokens at most: e^{w n} then takes a quarter of the range that LIMIT allows.
        self.n = min(CHUNK, max(ceil(self.T / 4), 2), self.T)
        self.N = ceil(self.T / self.n)
        self.max = x.k.amax(1, keepdim=True).to(self.dtype)
        w = x.w.double()
        j = torch.arange(self.n, device=w.device, dtype=w.dtype).view(-1, 1, 1)
        # Subtracted from |t - i|; the other terms of the released kernel are in _Pieces.
        self.offset = 1 if distance == 'paper' else 0
        exponents = (w * j, -w * j, -w * (j - self.offset), w * (j + self.offset), x.u.double())
        tables = [exponent.exp().to(self.dtype) for exponent in exponents]
        self.grow, self.decay, self.past, self.future, self.bonus = tables
        self.q = torch.arange(self.N, device=w.device, dtype=w.dtype).view(-1, 1, 1) * self.n
        self.grow_chunk, self.decay_chunk = (w * self.q).exp(), (-w * self.q).exp()
        # A GPU may round float32 products to TF32, but not float64 ones.
        wide = self.dtype if w.device.type == 'cpu' else w.dtype
        between = (j[:, 0] - j[:, 0, 0] - 1).to(wide)
        self.lower, self.lower_moments = (between >= 0).to(wide), between.clamp(min=0)
        self.j = j.to(self.dtype)
        # About twelve tensors of this size exist at a time: keep them small for short sequences, too.
        images = max(1, min(TILE, x.k.numel() // 16) // (2 * self.n * C))
        chunks = max(1, images // B)
        images = min(B, images)
        self.tiles = [
            (slice(b, b + images), slice(first, min(first + chunks, self.N)))
            for b in range(0, B, images)
            for first in range(0, self.N, chunks)
        ]

    def tokens(self, tile) -> tuple[slice, slice]:
        """Images and tokens of a tile, for slicing tensors (B, T, ...)."""
        images, chunks = tile
        return images, slice(chunks.start * self.n, min(chunks.stop * self.n, self.T))

    def read(self, x: Tensor, tile) -> Tensor:
        """Read (b, chunks, n, 1, C) from (B, T, C), or (b, chunks, n, 2, C) from (B, T, 2, C)."""
        x = x[self.tokens(tile)].to(self.dtype)
        chunks = tile[1].stop - tile[1].start
        if missing := chunks * self.n - x.size(1):
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
        return x.reshape(x.size(0), chunks, self.n, -1, x.size(-1))

    def write(self, value: Tensor, out: Tensor, tile) -> None:
        """Undo :meth:`read`."""
        out = out[self.tokens(tile)]
        out.copy_(value.reshape(value.size(0), -1, *out.shape[2:])[:, : out.size(1)])

    def pair(self, x: Wkv, tile) -> Tensor:
        """z = [x v, x]."""
        e = (self.read(x.k, tile) - self.max[tile[0], None, None]).exp_()
        if tile[1].stop == self.N:
            e[:, -1, self.T - (self.N - 1) * self.n :] = 0
        return torch.cat((e * self.read(x.v, tile), e), 3)

    def carries(self, read: Callable, shape: torch.Size, moments: bool = False) -> _Carries:
        """Carries of a tensor (B, T, 2, C), of which ``read`` returns a tile; ``shape`` is (B, T, C)."""
        last, first = self.n - 1 - self.j, self.j
        tables = [self.grow, self.decay]
        tables += [self.grow * last, self.decay * first] if moments else []
        totals = torch.empty(
            len(tables), shape[0], self.N, 2, shape[2], device=self.q.device, dtype=self.q.dtype
        )
        for tile in self.tiles:
            z = read(tile)
            for total, table in zip(totals, tables, strict=True):
                total[tile] = (z * table).sum(2)
        totals[0::2] *= self.grow_chunk
        totals[1::2] *= self.decay_chunk
        sums = [before(totals[0]), _after(totals[1])]
        if moments:
            # There are n (q - p - 1) tokens between chunks p and q.
            earlier, later = before(totals[0] * (self.q + self.n)), _after(totals[1] * (self.q - self.n))
            sums.append(self.q * sums[0] - earlier + before(totals[2]))
            sums.append(later - self.q * sums[1] + _after(totals[3]))
        scales = (self.decay_chunk, self.grow_chunk) * 2
        sums = [(s * scale).to(self.dtype) for s, scale in zip(sums, scales, strict=False)]
        return _Carries(*sums, *(None,) * (4 - len(sums)))

    def sides(self, z: Tensor, carries: _Carries, tile) -> tuple[Tensor, Tensor]:
        """Sums over earlier and over later tokens."""
        past, future = carries.of(tile)[:2]
        past = _product(self.lower, z * self.grow).add_(past).mul_(self.past)
        future = _product(self.lower.T, z * self.decay).add_(future).mul_(self.future)
        return past, future

    def slope(self, z: Tensor, sides: tuple[Tensor, Tensor], carries: _Carries, tile) -> Tensor:
        """Derivative by w of the sum of both sides."""
        past, future, past_moments, future_moments = carries.of(tile)
        past = _product(self.lower_moments, z * self.grow).add_(past_moments).addcmul_(past, self.j)
        future = _product(self.lower_moments.T, z * self.decay).add_(future_moments)
        future.addcmul_(carries.of(tile)[1], self.n - 1 - self.j)
        slope = past.mul_(self.past).addcmul_(future, self.future)
        if not self.offset:
            slope.add_(sides[0]).add_(sides[1])
        return slope.neg_()

    def total(self, z: Tensor, sides: tuple[Tensor, Tensor], inside: Tensor | None, tile) -> Tensor:
        """K[z], plus ``inside`` (B, T, 2, C)."""
        total = torch.addcmul(sides[0] + sides[1], z, self.bonus)
        return total if inside is None else total.add_(self.read(inside, tile))


class _Pieces:
    """Terms that the released kernel adds within each of its pieces to sums with distances |t - i|.

    (e^w - 1) (A - G),   A_t = sum_{s <= i < t} e^{-w (t-i)} z_i,   G_t = sum_{s < i <= t} e^{w (t-i)} z_i,
    where s is the first token of t's piece.
    """

    def __init__(self, x: Wkv, dtype: torch.dtype):
        self.T, self.n = x.k.size(1), piece_length(x.k.size(1))
        self.w, self.dtype = x.w.double(), dtype
        j = torch.arange(self.n, device=x.w.device, dtype=torch.float64).view(-1, 1, 1)
        self.grow, self.decay = ((sign * self.w * j).exp().to(self.dtype) for sign in (1, -1))
        self.after_first = (j > 0).to(self.dtype)
        self.j = j.to(self.dtype)

    def __call__(self, z: Tensor) -> Tensor:
        """(B, T, 2, C) -> (B, T, 2, C)."""
        return self._join(torch.expm1(self.w), *self._sides(self._split(z)))

    def slope(self, z: Tensor) -> Tensor:
        """Derivative by w."""
        z = self._split(z)
        a, g = self._sides(z)
        a_moment, g_moment = self._sides(z * self.j)
        by_distance = self._join(torch.expm1(self.w), a_moment - self.j * a, self.j * g - g_moment)
        return self._join(self.w.exp(), a, g) + by_distance

    def transposed(self, z: Tensor) -> Tensor:
        """Transpose of the operator."""
        z = self._split(z)
        a = self.grow * _after(z * self.decay, 2)
        g = self.after_first * (self.decay * _after(z * self.grow, 2) + z)
        return self._join(torch.expm1(self.w), a, g)

    def _sides(self, z: Tensor) -> tuple[Tensor, Tensor]:
        rest = z * self.after_first
        return self.decay * before(z * self.grow, 2), self.grow * before(rest * self.decay, 2) + rest

    def _split(self, z: Tensor) -> Tensor:
        return F.pad(z, (0, 0, 0, 0, 0, PIECES * self.n - self.T)).unflatten(1, (PIECES, self.n))

    def _join(self, factor: Tensor, a: Tensor, g: Tensor) -> Tensor:
        return (factor.to(self.dtype) * (a - g)).flatten(1, 2)[:, : self.T]


def _product(matrix: Tensor, z: Tensor) -> Tensor:
    """Matrix (n, n) times z (b, chunks, n, 2, C)."""
    return (matrix @ z.flatten(3).to(matrix.dtype)).to(z.dtype).view(z.shape)


def _after(x: Tensor, dim: int = 1) -> Tensor:
    """Exclusive cumulative sum from the end."""
    return before(x.flip(dim), dim).flip(dim)


def _pair(x: Wkv, chunks: _Chunks) -> Tensor:
    """z = [x v, x] of all tokens, (B, T, 2, C)."""
    e = (x.k.to(chunks.dtype) - chunks.max).exp_()
    return torch.stack((e * x.v, e), 2)


def forward(x: Wkv, y: Tensor, distance: str) -> None:
    """Average, see ``interface.py``."""
    dtype = accumulation_dtype(y.dtype)
    chunks = _Chunks(x, distance, dtype)
    inside = _Pieces(x, dtype)(_pair(x, chunks)) if distance == 'released' else None
    carries = chunks.carries(lambda tile: chunks.pair(x, tile), x.k.shape)
    for tile in chunks.tiles:
        z = chunks.pair(x, tile)
        sums = chunks.total(z, chunks.sides(z, carries, tile), inside, tile)
        chunks.write(sums[:, :, :, 0] / sums[:, :, :, 1], y, tile)


def backward(grad: Tensor, x: Wkv, out: Wkv, distance: str) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    B, T, C = x.k.shape
    adjoint = torch.empty(B, T, 2, C, dtype=accumulation_dtype(x.k.dtype), device=x.k.device)
    _backward_to_sums(grad, x, adjoint, out, distance)
    inside = _Pieces(x, adjoint.dtype).transposed(adjoint) if distance == 'released' else None
    chunks = _Chunks(x, distance, adjoint.dtype)
    carries = chunks.carries(lambda tile: chunks.read(adjoint, tile), x.k.shape)
    for tile in chunks.tiles:
        r = chunks.read(adjoint, tile)
        sums = chunks.total(r, chunks.sides(r, carries, tile), inside, tile)
        sums *= chunks.pair(x, tile)[:, :, :, 1:]
        chunks.write(sums[:, :, :, :1], out.v, tile)
        chunks.write(chunks.read(x.v, tile) * sums[:, :, :, :1] - sums[:, :, :, 1:], out.k, tile)


def _backward_to_sums(grad: Tensor, x: Wkv, adjoint: Tensor, out: Wkv, distance: str) -> None:
    """Write [r, r y] into ``adjoint`` (B, T, 2, C), and the gradients of w and u."""
    chunks = _Chunks(x, distance, torch.float64)
    inside = slopes_inside = None
    if distance == 'released':
        z, pieces = _pair(x, chunks), _Pieces(x, torch.float64)
        inside, slopes_inside = pieces(z), pieces.slope(z)
    carries = chunks.carries(lambda tile: chunks.pair(x, tile), x.k.shape, moments=True)
    dw, du = (torch.zeros(x.k.size(2), dtype=torch.float64, device=x.k.device) for _ in range(2))
    for tile in chunks.tiles:
        z = chunks.pair(x, tile)
        sides = chunks.sides(z, carries, tile)
        slope = chunks.slope(z, sides, carries, tile)
        if slopes_inside is not None:
            slope += chunks.read(slopes_inside, tile)
        sums = chunks.total(z, sides, inside, tile)
        y = sums[:, :, :, :1] / sums[:, :, :, 1:]
        r = chunks.read(grad, tile) / sums[:, :, :, 1:]
        chunks.write(torch.cat((r, r * y), 3), adjoint, tile)
        dw += (r * (slope[:, :, :, :1] - y * slope[:, :, :, 1:])).sum((0, 1, 2, 3))
        du += (r * (z[:, :, :, :1] - y * z[:, :, :, 1:])).sum((0, 1, 2, 3))
    out.w.copy_(dw)
    out.u.copy_(du * x.u.double().exp())
