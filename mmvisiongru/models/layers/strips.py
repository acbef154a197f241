"""Inference on large maps, strip by strip.

A layer that widens its input writes and reads a multiple of the map. Without gradients nothing of that is
kept, so on a CPU it is cheaper to take a strip of the map through the layer while it is in the cache. The
result is the same only if every layer sees no further than we know: only what is as we built it (`known`)
sees strips, anything else sees the whole map.
"""

from collections.abc import Callable, Sequence

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .conv import ChannelsLastConv2d
from .known import is_plain_inference, is_unchanged
from .mlp import MLP

# Tokens of a strip: enough rows for a GEMM to run at full speed, few enough to stay in the cache.
STRIP_TOKENS = 2048
# What these do to a map is known as long as they do it by these methods.
KNOWN = {
    layer: layer.forward
    for layer in (nn.Linear, nn.LayerNorm, nn.Identity, DropPath, MLP, ChannelsLastConv2d)
}


def by_strips(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    layers: Sequence[nn.Module],
    *,
    stride: int = 1,
    halo: int = 0,
    residual: bool = False,
) -> Tensor:
    """Compute f(x), or x + f(x), strip by strip where that is cheaper and certain to be the same.

    Args:
        f (Callable): (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), D).
        x (Tensor): The map, (B, H, W, C).
        layers (Sequence[nn.Module]): All layers that f applies.
        stride (int): Rows of x for a row of the result.
        halo (int): Rows of the result by which a strip has to begin higher up, for its first row to come out
            right. Below its own rows of x a row of the result sees nothing.
        residual (bool): Return x + f(x). It may be written over x, which only the caller may hold.
    """
    if not takes_strips(x, layers, stride):
        return x + f(x) if residual else f(x)
    if residual:
        for strip in row_strips(x):
            strip += f(strip)
        return x
    rows = strip_rows(x, stride)
    strips = []
    for top in range(0, -(-x.size(1) // stride), rows):
        # What is computed from the edge of a strip is left out.
        above = min(top, halo)
        strips.append(f(x[:, stride * (top - above) : stride * (top + rows)])[:, above:])
    return torch.cat(strips, 1)


def cast_once(weight: Tensor) -> Tensor:
    """A weight in the dtype of autocast, which would cast a part of it again for every strip."""
    return weight.to(torch.get_autocast_dtype('cpu')) if torch.is_autocast_enabled('cpu') else weight


def strip_rows(x: Tensor, stride: int = 1) -> int:
    """Rows of the result in a strip of a map (B, H, W, C)."""
    return max(1, STRIP_TOKENS * stride // x.size(2))


def row_strips(x: Tensor) -> tuple[Tensor, ...]:
    """Split a map (B, H, W, C) into strips, top to bottom."""
    return x.split(strip_rows(x), 1)


def takes_strips(x: Tensor, layers: Sequence[nn.Module], stride: int = 1) -> bool:
    """Whether to take the map x (B, H, W, C) through layers, of this stride in all, strip by strip."""
    # To ask for the size before would fix it in a traced graph.
    if not is_plain_inference(x):
        return False
    tokens, width = x.shape[1:3].numel() // stride**2, x.size(2) // stride
    if tokens < 4 * STRIP_TOKENS or width > STRIP_TOKENS:
        return False
    return all(_is_known(m, x) for layer in layers for m in layer.modules())


def _is_known(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer acts on each token of x alone; of a convolution, on a window of 3 x 3 at stride 2."""
    # A layer in training mode draws random numbers.
    if layer.training or not is_unchanged(layer, KNOWN.get(type(layer)), x):
        return False
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) != 1:
        return False
    return not isinstance(layer, nn.Conv2d) or _is_3x3_at_stride_2(layer)


def _is_3x3_at_stride_2(conv: nn.Conv2d) -> bool:
    window = (conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation, conv.padding_mode)
    return window == ((3, 3), (2, 2), (1, 1), (1, 1), 'zeros')
