"""What is known of a layer: whether it does on a map what we built it for.

A layer may have been replaced, patched, hooked, quantised or moved away. The short cuts of inference
(`strips`, `linear`) are the same computation only for a layer as we built it; any other is called as it is.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules

from mmvisiongru._compat import is_transformed

HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
CAST_BY_AUTOCAST = {torch.float32, torch.bfloat16, torch.float16}


def is_plain_inference(x: Tensor) -> bool:
    """Whether x is numbers on the CPU that nothing follows: no gradient, tracer or hook of all modules."""
    if torch.is_grad_enabled() or x.device.type != 'cpu' or type(x) is not Tensor:
        return False
    # A traced or compiled graph should hold a layer once, for any size; a transformation sees whole maps.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed():
        return False
    return not any(getattr(hooks_of_all_modules, f'_global{kind}') for kind in HOOKS)


def is_unchanged(layer: nn.Module, forward, x: Tensor) -> bool:
    """Whether a layer runs this method of its class alone, with weights of the kind of x.

    A subclass or a patched method may do anything, and a hook wants to see what the layer sees.
    """
    if forward is None or getattr(layer.forward, '__func__', None) is not forward:
        return False
    if any(getattr(layer, kind) for kind in HOOKS):
        return False
    return all(_is_plain(getattr(layer, name, None), x) for name in ('weight', 'bias'))


def _is_plain(weight: Tensor | None, x: Tensor) -> bool:
    """Whether a weight is numbers of the map's kind in the same place; a quantised one is a subclass."""
    if weight is None:
        return True
    if type(weight) not in (Tensor, nn.Parameter) or weight.layout is not torch.strided:
        return False
    alike = weight.dtype == x.dtype or (
        torch.is_autocast_enabled('cpu') and {weight.dtype, x.dtype} <= CAST_BY_AUTOCAST
    )
    return alike and weight.device == x.device
