"""Inference on large maps, strip by strip.

A layer that widens its input writes and reads a multiple of the map. Without gradients nothing of that is
kept, so on a CPU it is cheaper to take a strip of the map through the layer while it is in the cache.
"""

import torch
from torch import Tensor, nn

# Tokens of a strip: enough rows for a GEMM to run at full speed, few enough to stay in the cache.
STRIP_TOKENS = 2048


def worth_streaming(x: Tensor, *layers: nn.Module, stride: int = 1) -> bool:
    """Whether to take the map x (B, H, W, C) through wide layers, of this stride, strip by strip."""
    if torch.is_grad_enabled() or x.device.type != 'cpu':
        return False
    # A traced or compiled graph should hold the layer once, for any size.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    tokens, width = x.shape[1:3].numel() // stride**2, x.size(2) // stride
    if tokens < 4 * STRIP_TOKENS or width > STRIP_TOKENS:
        return False
    # A hook wants to see the whole map.
    return not any(m._forward_hooks or m._forward_pre_hooks for layer in layers for m in layer.modules())


def strip_rows(x: Tensor) -> int:
    """Rows in a strip of a map (B, H, W, C)."""
    return max(1, STRIP_TOKENS // x.size(2))
