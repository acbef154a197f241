"""Linear layers, in inference on a CPU with the activation inside.

torch.nn.functional.linear goes through MKL there, which on some processors leaves half of the vector unit
idle, and a GELU reads and writes the widest map of a block again. oneDNN, which torch brings along for its
compiler, does both in one pass.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .known import is_plain_inference, is_unchanged

LINEAR = nn.Linear.forward


def linear(layer: nn.Module, x: Tensor, gelu: bool = False) -> Tensor:
    """layer(x), or GELU(layer(x)).

    Args:
        layer (nn.Module): A linear layer, or what took its place.
        x (Tensor): (..., C).
        gelu (bool): Apply the GELU of torch.nn.functional.gelu.
    """
    # A forward pass in training mode may be done again with gradients, and should then be the same.
    plain = not layer.training and type(layer) is nn.Linear and is_unchanged(layer, LINEAR, x)
    if plain and _takes_onednn(x, layer.weight):
        return _onednn(x, layer.weight, layer.bias, gelu)
    out = layer(x)
    return F.gelu(out) if gelu else out


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x W^T + b, or GELU of that: (..., C), (D, C) and (D) -> (..., D)."""
    if _takes_onednn(x, weight):
        return _onednn(x, weight, bias, gelu)
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'gelu' if gelu else 'none', [], 'none')


@cache
def _dtypes() -> tuple[torch.dtype, ...]:
    """What oneDNN computes in on this processor, as torch does."""
    if not torch.backends.mkldnn.is_available():
        return ()
    bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if bfloat16 else (torch.float32,)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.dtype not in _dtypes() or x.numel() == 0 or torch.is_autocast_enabled('cpu'):
        return False
    # Of strided ones it makes a loop over single numbers, 30 times slower.
    if not (x.is_contiguous() and weight.is_contiguous()):
        return False
    # A mode, such as a counter of operations, knows the operators of torch.
    return is_plain_inference(x) and torch.backends.mkldnn.enabled and _get_current_dispatch_mode() is None
