"""Convolution and MLP on channels-last maps."""

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.overrides import has_torch_function


class ChannelsLastConv2d(nn.Conv2d):
    """``nn.Conv2d`` on (B, H, W, C), padded with zeros.

    The permutes are views of the channels-last memory format.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) -> (B, H', W', out_channels)."""
        weight = with_own_strides(self.weight) if self.training else self.weight
        x = x.permute(0, 3, 1, 2)
        x = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return x.permute(0, 2, 3, 1)


# torch.fx would trace into it, and has no strides.
@torch.fx.wrap
def with_own_strides(weight: Tensor) -> Tensor:
    """A depthwise weight as a view, so that its gradient has the strides of the parameter.

    It would have another stride along its side of 1, and DistributedDataParallel would copy it and warn.
    """
    return weight.view_as(weight) if weight.size(1) == 1 and weight.stride(0) == weight.stride(1) else weight


class RecomputedGELU(torch.autograd.Function):
    """W GELU(x) + b that saves x for backward and not GELU(x), which costs little to compute again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x, weight), tokens = ctx.saved_tensors, grad.reshape(-1, grad.size(-1))
        d_x, d_weight = torch.ops.aten.gelu_backward(grad @ weight, x), None
        if ctx.needs_input_grad[1]:
            d_weight = tokens.mT @ F.gelu(x).reshape(-1, x.size(-1))
        return d_x, d_weight, tokens.sum(0)


class GELULinear(nn.Module):
    """W GELU(x) + b on the last axis.

    The map before the GELU is the widest of a block: saved for backward once, not once more after the GELU.
    It is no ``nn.Linear``, so that no adapter takes x for the input of the product.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        linear = nn.Linear(in_features, out_features)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        weight, bias, kind = self.weight, self.bias, x.device.type
        # A trace would hold the function as a call of Python, whose operations nobody can count, and the
        # gradient knows nothing of a tensor subclass or mode that computes the product in another way.
        overridden = torch.jit.is_tracing() or has_torch_function((x, weight, bias))
        if overridden or not torch.is_grad_enabled():
            return F.linear(F.gelu(x), weight, bias)
        # Not every compiler of torch knows the first question, and what it compiles for has autocast.
        available = torch.compiler.is_compiling() or is_autocast_available(kind)
        # As of any layer, autocast leaves float64 as it is.
        if available and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        return RecomputedGELU.apply(x, weight, bias)


class MLP(nn.Module):
    """W2 GELU(W1 x) on the last axis."""

    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * ratio)
        self.fc2 = GELULinear(dim * ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.fc2(self.fc1(x))
