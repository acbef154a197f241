r"""Convolutions of maps that were enlarged for them, computed before they are enlarged.

Heads such as UPerHead enlarge the maps of all stages to the size of the first one, join and convolve them:
most of that work is on copies. A convolution is linear, and so is bilinear interpolation. So the channels can
be mixed first, once for each tap (i, j) of the kernel, on the map as it is:

    conv(U x) = sum_j [sum_i S_i U_rows (W_ij x)] (S_j U_columns)^T

with S the shift by a tap, zeros beyond the border. Enlarging and shifting is one product with a matrix along
each side. UPerHead with 512 channels has half as many operations then, for an image of 512 x 512.
"""

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Sides = int | Sequence[int]

# Channels of a map from which on this pays. For each channel that comes out, a convolution of 3 x 3 saves 7
# operations a channel that goes in, where the map has half the size; the matrices take 7.5 a row of that map.
# With 256 channels they meet at images of some 1,800 x 1,800, with 512 at twice the side.
WIDE = 256


class AtOwnResolution(TorchFunctionMode):
    """Within this context a convolution of joined maps mixes those that were enlarged before they were.

    It applies to ``conv2d`` of ``cat`` of ``interpolate``: bilinear to a size without ``align_corners``,
    joined along the channels, convolved with stride 1 and as much padding as keeps the size. The enlarged
    maps are still computed for whom else they concern; an exporter drops what nobody asks for.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.conv2d:
            call = _arguments(_conv2d, args, kwargs)
            parts = getattr(call['input'], 'joined_from', ())
            if any(map(_is_small, parts)) and _keeps_size(**call):
                return _convolve(parts, call['weight'], call['bias'])
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            # What was written over is returned as it is, and no longer what it was.
            out.__dict__.pop('enlarged_from', None)
            out.__dict__.pop('joined_from', None)
        if func is F.interpolate and _is_bilinear(call := _arguments(func, args, kwargs)):
            out.enlarged_from = call['input']
        elif func is torch.cat and out.dim() == 4 and (*args[1:], *kwargs.values()) == (1,):
            out.joined_from = tuple(args[0])
        return out


def _is_small(part: Tensor) -> bool:
    return hasattr(part, 'enlarged_from') and part.shape[1] >= WIDE


def _convolve(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d of the joined parts, with a padding that keeps the size."""
    whole, small = [], []
    for part, share in zip(parts, weight.split([part.shape[1] for part in parts], 1), strict=True):
        if _is_small(part):
            small.append((part.enlarged_from, share))
        else:
            whole.append((part, share))
    out = enlarge_and_convolve(small, parts[0].shape[2:])
    if whole:
        maps, shares = zip(*whole, strict=True)
        padding = [side // 2 for side in weight.shape[2:]]
        out = F.conv2d(torch.cat(maps, 1), torch.cat(shares, 1), bias, padding=padding) + out
    elif bias is not None:
        out = out + bias[:, None, None]
    return out


def enlarge_and_convolve(maps: Sequence[tuple[Tensor, Tensor]], size: Sequence[int]) -> Tensor:
    """The sum of conv2d(interpolate(x, size), w), padded to keep the size, over x and w.

    Args:
        maps (Sequence[tuple]): Maps (B, C, h, w), each of its own C, h and w, with the weights for them,
            (D, C, k, l) with odd k and l.
        size (Sequence[int]): H and W.

    Returns:
        Tensor: (B, D, H, W).
    """
    lefts, rights = [], []
    for x, weight in maps:
        channels, _, rows, columns = weight.shape
        enlarge_rows = _shifted(x.shape[2], size[0], rows, x).flatten(1)
        for tap, enlarge_columns in enumerate(_shifted(x.shape[3], size[1], columns, x).unbind(1)):
            # For each channel its taps of this column, one map above the other.
            share = weight[..., tap].transpose(1, 2).flatten(0, 1)[..., None, None]
            mixed = F.conv2d(x, share).unflatten(1, (channels, rows)).flatten(2, 3)
            lefts.append(enlarge_rows @ mixed)
            rights.append(enlarge_columns)
    return torch.cat(lefts, 3) @ torch.cat(rights, 1).T


def _shifted(size: int, enlarged: int, taps: int, like: Tensor) -> Tensor:
    """Bilinear interpolation of a side, then the shift by each tap: a matrix (enlarged, taps, size)."""
    whole, span = (torch.arange(n, device=like.device) for n in (enlarged, size))
    at = whole[:, None] + torch.arange(taps, device=like.device) - taps // 2
    # Positions on the side in units of 1 / (2 enlarged), in which they are whole numbers.
    unit = 2 * enlarged
    source = ((2 * at + 1) * size - enlarged).clamp(0, unit * (size - 1))
    near = (unit - (source[..., None] - unit * span).abs()).clamp(min=0)
    inside = (at >= 0) & (at < enlarged)
    return (near * inside[..., None]).to(like.dtype) / unit


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sides = 1,
    padding: Sides | str = 0,
    dilation: Sides = 1,
    groups: int = 1,
):
    """The arguments of torch.nn.functional.conv2d, which does not tell them."""


def _arguments(function, args: Sequence, kwargs: dict) -> dict:
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return call.arguments


def _is_bilinear(call: dict) -> bool:
    exact = call['size'] is not None and not call['align_corners'] and not call['antialias']
    return exact and call['mode'] == 'bilinear'


def _keeps_size(
    weight: Tensor, stride: Sides, padding: Sides | str, dilation: Sides, groups: int, **_
) -> bool:
    sides = weight.shape[2:]
    same = all(side % 2 for side in sides) and _pair(padding) == tuple(side // 2 for side in sides)
    return same and _pair(stride) == _pair(dilation) == (1, 1) and groups == 1


def _pair(value: Sides | str) -> tuple:
    return (value, value) if isinstance(value, (int, str)) else tuple(value)
