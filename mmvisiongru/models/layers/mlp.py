"""The channel mixer of a block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node

from .linear import linear


class MLP(nn.Module):
    """W2 GELU(W1 x) on the last axis.

    Examples:
        >>> import torch
        >>> from mmvisiongru.models.layers import MLP
        >>> MLP(dim=8, ratio=4)(torch.rand(1, 5, 6, 8)).shape
        torch.Size([1, 5, 6, 8])
    """

    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * ratio)
        self.fc2 = nn.Linear(dim * ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        activated = linear(self.fc1, x, gelu=True)
        out = linear(self.fc2, activated)
        recompute_gelu(activated, out)
        return out


def recompute_gelu(activated: Tensor, out: Tensor) -> None:
    """Let the backward pass of out = Linear(activated) compute the GELU again instead of keeping it.

    GELU keeps its input and the linear layer keeps GELU's output, for the gradient of its weight: twice the
    widest map of a block. GELU again costs little, so only its input stays. The layer has run already, whole
    and once. Where it is no plain linear layer, or something else looks after what is kept (a checkpoint, an
    offload), nothing changes.

    Args:
        activated (Tensor): GELU's output.
        out (Tensor): Output of the layer that took it.
    """
    # A compiler decides by itself what to keep, and a tracer follows what it should not.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    gelu, linear = activated.grad_fn, _behind_views(out.grad_fn)
    if not (_is(gelu, 'GeluBackward0') and _is(linear, 'AddmmBackward0')):
        return
    if _behind_views(linear.next_functions[1][0]) is not gelu:
        return
    try:
        linear._raw_saved_mat1.register_hooks(
            lambda matrix: matrix.shape, lambda shape: F.gelu(gelu._saved_self).view(shape)
        )
    # Nothing is kept (the weight is frozen), or another hook keeps it already.
    except RuntimeError:
        return


def _is(node: Node | None, *names: str) -> bool:
    return node is not None and node.name() in names


def _behind_views(node: Node | None) -> Node | None:
    """A linear layer of a map is a product of matrices between two views."""
    while _is(node, 'ViewBackward0', 'UnsafeViewBackward0'):
        node = node.next_functions[0][0]
    return node
