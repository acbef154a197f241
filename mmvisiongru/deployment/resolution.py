r"""Convolutions of maps that were enlarged for them, computed before they are enlarged.

Heads such as UPerHead enlarge the maps of all stages to the size of the first one, join and convolve them:
most of that work is on copies. A convolution is linear, and so is bilinear interpolation. So the channels can
be mixed first, once for each tap (i, j) of the kernel, on the map as it is:

    conv(U x) = sum_j [sum_i S_i U_rows (W_ij x)] (S_j U_columns)^T

with S the shift by a tap, zeros beyond the border. Enlarging and shifting is one product with a matrix along
each side. UPerHead with 512 channels takes 0.53 of the operations then, for an image of 512 x 512.
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
# With 256 channels they meet at images of some 1,800 x 1,800, with 512 at twice the side. With a kernel of
# one pixel they would meet at 1,000 x 1,000.
WIDE = 256


class AtOwnResolution(TorchFunctionMode):
    """Within this context a convolution of joined maps is computed on small ones before they are enlarged.

    It applies to ``conv2d`` of ``cat`` of ``interpolate``: bilinear to a size without ``align_corners``,
    joined along the channels, convolved with stride 1, a kernel of more than one pixel and as much padding as
    keeps the size. The enlarged maps are still computed for any other use; the exporter removes them if there
    is none. What is written over in between is convolved as it is, except behind autograd's back
    (``x.data``). In ``torch.inference_mode``, where nothing tells of such changes, nothing is done.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.conv2d:
            call = _arguments(_conv2d, args, kwargs)
            parts = _origin(call['input'], 'joined_from')
            if any(map(_is_interpolated, parts)) and _keeps_size(**call):
                return _convolve(parts, call['weight'], call['bias'])
        out = func(*args, **kwargs)
        if func is F.interpolate and _is_bilinear(call := _arguments(func, args, kwargs)):
            _tag(out, 'enlarged_from', (call['input'],))
        elif func is torch.cat and _is_of_channels(out, call := _arguments(_cat, args, kwargs)):
            _tag(out, 'joined_from', tuple(call['tensors']))
        return out


def _tag(out: Tensor, name: str, sources: tuple[Tensor, ...]) -> None:
    """Note on a map what it was made of, and in which state that was."""
    tensors = (out, *sources)
    if not any(x.is_inference() for x in tensors):
        setattr(out, name, (sources, [x._version for x in tensors]))


def _origin(x: Tensor, name: str) -> tuple[Tensor, ...]:
    """What a map was made of, unless one of them was written over since."""
    sources, versions = getattr(x, name, ((), ()))
    return sources if all(x._version == v for x, v in zip((x, *sources), versions, strict=False)) else ()


def _is_interpolated(part: Tensor) -> bool:
    return part.shape[1] >= WIDE and bool(_origin(part, 'enlarged_from'))


def _convolve(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d of the joined parts, with a padding that keeps the size."""
    whole, small = [], []
    for part, share in zip(parts, weight.split([part.shape[1] for part in parts], 1), strict=True):
        if _is_interpolated(part):
            small.append((*_origin(part, 'enlarged_from'), share))
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
            (N, C, k, l) with odd k and l.
        size (Sequence[int]): H and W.

    Returns:
        Tensor: (B, N, H, W).
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


def _cat(tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor | None = None):
    """The arguments of torch.cat, which does not tell them."""


def _arguments(function, args: Sequence, kwargs: dict) -> dict:
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return call.arguments


def _is_bilinear(call: dict) -> bool:
    exact = call['size'] is not None and not call['align_corners'] and not call['antialias']
    return exact and call['mode'] == 'bilinear'


def _is_of_channels(joined: Tensor, call: dict) -> bool:
    """Whether maps of one type were joined along their channels, into a tensor of its own."""
    alike = all(part.dim() == 4 and part.dtype == joined.dtype for part in call['tensors'])
    return alike and call['dim'] in (1, -3) and call['out'] is None


def _keeps_size(
    weight: Tensor, stride: Sides, padding: Sides | str, dilation: Sides, groups: int, **_
) -> bool:
    sides = weight.shape[2:]
    same = (
        all(side % 2 for side in sides)
        and max(sides) > 1
        and _pair(padding) == tuple(side // 2 for side in sides)
    )
    return same and _pair(stride) == _pair(dilation) == (1, 1) and groups == 1


def _pair(value: Sides | str) -> tuple:
    return (value, value) if isinstance(value, (int, str)) else tuple(value)
