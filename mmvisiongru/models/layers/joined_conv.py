r"""A convolution of maps of different sizes that computes each map at its own resolution.

Heads such as UPerHead enlarge the maps of all stages to the size of the first one, join them and convolve the
result. Most of that work repeats itself on copies of a pixel. Interpolation U and convolution are linear and
act on space and on channels separately, so the channels can be mixed before the map is enlarged:

    conv(U x) = sum_j [sum_i S_i U_rows (W_ij x)] (S_j U_columns)^T

W_ij is the weight of tap (i, j), a matrix of output by input channels, and S the shift by a tap with zeros
beyond the border. One product with a matrix along each side both enlarges and shifts.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Output pixels computed at a time, height and width. A matrix of a side has output x input pixels, so that
# without tiles its cost would grow with the image; and what lies between products stays in a CPU's caches.
TILE = 64, 128
# Multiply-accumulates that take a CPU as long as the additional calls for one map.
CALLS = 5e7


class JoinedConv2d(nn.Conv2d):
    """Equals ``Conv2d(cat([resize(x, maps[0].shape[2:]) for x in maps], 1))``, without the joined map.

    Parameters and state-dict keys are those of ``nn.Conv2d``. Only stride 1, odd kernels and a padding that
    keeps the size are supported, which is what decode heads use.
    """

    mode, align_corners = 'bilinear', False

    @classmethod
    def replace(cls, conv: nn.Module, mode: str, align_corners: bool) -> 'JoinedConv2d':
        """A layer with the parameters of a plain ``nn.Conv2d``; a ``conv_cfg`` that gives another raises."""
        if type(conv) is not nn.Conv2d or conv.padding_mode != 'zeros':
            raise ValueError(
                'heads of mmvisiongru convolve with nn.Conv2d and a padding of zeros, but conv_cfg gives '
                f"{conv}; use mmseg's head of the same name"
            )
        sizes = conv.in_channels, conv.out_channels, conv.kernel_size
        # On the meta device no random values are drawn, so the random state is that of mmseg's head.
        joined = cls(*sizes, padding=conv.padding, bias=conv.bias is not None, device='meta')
        joined.weight, joined.bias = conv.weight, conv.bias
        joined.mode, joined.align_corners = mode, align_corners
        return joined

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i), the first one of the size of the output -> (B, N, H, W)."""
        return self._conv_forward(maps, self.weight, self.bias)

    def _conv_forward(self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        # mmcv's ConvModule calls this name with a folded batch norm.
        size, weights = maps[0].shape[2:], weight.split([x.shape[1] for x in maps], 1)
        if self.kernel_size == (1, 1):
            out = F.conv2d(maps[0], weights[0], bias)
            for x, w in zip(maps[1:], weights[1:], strict=True):
                out = out + self._resize(F.conv2d(x, w), size)
            return out
        whole, small = [(maps[0], weights[0])], []
        for x, w in zip(maps[1:], weights[1:], strict=True):
            if is_cheaper(x, w, size):
                small.append((x, w))
            else:
                whole.append((self._resize(x, size), w))
        joined, weight = (_cat(parts, 1) for parts in zip(*whole, strict=True))
        out = F.conv2d(joined, weight, bias, padding=self.padding)
        return out + mix_and_enlarge(small, size, self.align_corners) if small else out

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def is_cheaper(x: Tensor, weight: Tensor, size: Sequence[int]) -> bool:
    """Whether mixing channels first saves more multiply-accumulates than its additional calls cost."""
    (B, C, h, w), (N, _, kh, kw), (H, W) = x.shape, weight.shape, size
    # A graph for any size cannot branch on it.
    if not all(isinstance(n, int) for n in (h, w, H, W)):
        return True
    rows, columns = (min(n, tile * n // full + 3) for n, full, tile in zip((h, w), size, TILE, strict=True))
    mixed_first = kh * kw * C * h * w + kh * kw * w * H * rows + kw * H * W * columns
    return B * N * (kh * kw * C * H * W - mixed_first) > CALLS


def mix_and_enlarge(
    maps: Sequence[tuple[Tensor, Tensor]], size: Sequence[int], align_corners: bool
) -> Tensor:
    """The sum of ``conv2d(interpolate(x, size), weight)``, padded to keep the size, over maps and weights.

    Maps (B, C_i, h_i, w_i) with weights (N, C_i, kh, kw), kh and kw odd, -> (B, N, H, W), channels-last.
    """
    levels, bands = [Level(x, weight, size, align_corners) for x, weight in maps], []
    for rows in _spans(size[0], TILE[0]):
        tiles = [reduce(add, (level.tile(rows, c) for level in levels)) for c in _spans(size[1], TILE[1])]
        bands.append(_cat(tiles, 2))
    return _cat(bands, 1).permute(0, 3, 1, 2)


def _cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    # One tensor would be copied.
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


class Level:
    """One map of :func:`mix_and_enlarge` with its weight and the matrices of both sides."""

    def __init__(self, x: Tensor, weight: Tensor, size: Sequence[int], align_corners: bool):
        self.x, self.align_corners = x.permute(0, 2, 3, 1), align_corners
        self.rows, self.columns = (
            shifted_enlargement(*sides, align_corners, x)
            for sides in zip(x.shape[2:], size, weight.shape[2:], strict=True)
        )
        # For each row of taps one matrix, whose result has the taps of that row side by side.
        self.taps = weight.permute(2, 3, 0, 1).flatten(1, 2)

    def tile(self, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """Rows and columns of the output, each from one to before another: (B, rows, columns, N)."""
        top, bottom = _source(rows, self.rows, self.align_corners)
        left, right = _source(columns, self.columns, self.align_corners)
        x = self.x[:, top:bottom, left:right]
        mixed = torch.cat([F.linear(x, weight) for weight in self.taps], 1)
        tall = self.rows[slice(*rows), :, top:bottom].flatten(1) @ mixed.flatten(2)
        enlarge_columns = self.columns[slice(*columns), :, left:right].transpose(1, 2).flatten(1)
        return enlarge_columns @ tall.unflatten(2, (enlarge_columns.shape[1], -1))


def _spans(length: int, step: int) -> list[tuple[int, int]]:
    """A side in tiles. A compiled graph has one: a loop would fix the size."""
    if torch.compiler.is_compiling():
        return [(0, length)]
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _source(span: tuple[int, int], matrices: Tensor, align_corners: bool) -> tuple[int, int]:
    """First input pixel that the output pixels of a span depend on, and the one behind the last."""
    enlarged, taps, size = matrices.shape
    if span == (0, enlarged):
        return 0, size
    # The first and last output pixels with the taps around them.
    ends = span[0] - taps // 2, span[1] - 1 + taps // 2
    if align_corners:
        first, last = (end * (size - 1) // (enlarged - 1) for end in ends)
    else:
        first, last = (((2 * end + 1) * size - enlarged) // (2 * enlarged) for end in ends)
    return max(0, first), min(size, last + 2)


def shifted_enlargement(size: int, enlarged: int, taps: int, align_corners: bool, like: Tensor) -> Tensor:
    """The matrices (enlarged, taps, size) that enlarge a side bilinearly and then shift it by each tap."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    unit = torch.eye(size, dtype=dtype, device=like.device)
    # What an interpolation does to the unit vectors is its matrix.
    matrix = F.interpolate(unit[None, None], (size, enlarged), mode='bilinear', align_corners=align_corners)
    padded = F.pad(matrix[0, 0].T, (0, 0, taps // 2, taps // 2))
    return torch.stack([padded[i : i + enlarged] for i in range(taps)], 1).to(like.dtype)
