"""The scan under ``torch.func`` and forward-mode differentiation, which torch.library does not cover.

A directional derivative of the scan is a scan itself. With tangents g' of the gate and x' of hidden,

h'_t = keep_t h'_{t-1} + z_t c'_t,   c'_t = dc/dhidden x'_t + keep_t (c_t - h_{t-1}) g'_t,

which is minGRU with the same gates and the candidates c', taken as they are.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from ..transforms import refuse
from .reference import candidate_and_slope

no_second_derivative = refuse('the minGRU scan has no second derivative')


def _fold(size: int, in_dims: tuple, args: tuple) -> list:
    """Take the mapped dimension of tensors (..., B, L, D) into the batch."""
    folded = []
    for dim, x in zip(in_dims, args, strict=True):
        if torch.is_tensor(x):
            x = (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        folded.append(x)
    return folded


class Scan(Function):
    """``mmvisiongru::mingru_scan``: gate, hidden (B, L, D), reverse, candidate, backend -> h (B, L, D)."""

    @staticmethod
    def forward(gate: Tensor, hidden: Tensor, reverse: bool, candidate: str, backend: str) -> Tensor:
        """Scan."""
        return torch.ops.mmvisiongru.mingru_scan(gate, hidden, reverse, candidate, backend)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Keep what both kinds of derivatives need."""
        gate, hidden, *ctx.options = inputs
        ctx.save_for_backward(gate, hidden, output)
        ctx.save_for_forward(gate, hidden, output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of gate and hidden."""
        return *ScanBackward.apply(grad, *ctx.saved_tensors, *ctx.options), None, None, None

    @staticmethod
    def jvp(ctx, gate_tangent: Tensor | None, hidden_tangent: Tensor | None, *options) -> Tensor:
        """Tangent of h, (B, L, D)."""
        gate, hidden, h = ctx.saved_tensors
        reverse, candidate, backend = ctx.options
        c, slope = candidate_and_slope(hidden, candidate)
        tangent = torch.zeros_like(h)
        if hidden_tangent is not None:
            tangent = tangent + slope * hidden_tangent
        if gate_tangent is not None:
            first = torch.zeros_like(h[:, :1])
            before = torch.cat((h[:, 1:], first) if reverse else (first, h[:, :-1]), 1)
            tangent = tangent + torch.sigmoid(-gate) * (c - before) * gate_tangent
        return Scan.apply(gate, tangent, reverse, 'linear', backend)

    @staticmethod
    def vmap(info, in_dims, *args):
        """Scan all at once."""
        out = Scan.apply(*_fold(info.batch_size, in_dims, args))
        return out.unflatten(0, (info.batch_size, -1)), 0


class ScanBackward(Function):
    """``mmvisiongru::mingru_scan_backward``."""

    @staticmethod
    def forward(grad, gate, hidden, h, reverse, candidate, backend) -> tuple[Tensor, Tensor]:
        """Gradients of gate and hidden."""
        return torch.ops.mmvisiongru.mingru_scan_backward(grad, gate, hidden, h, reverse, candidate, backend)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Nothing is kept, as nothing follows."""

    backward = jvp = staticmethod(no_second_derivative)

    @staticmethod
    def vmap(info, in_dims, *args):
        """Gradients of all at once."""
        grads = ScanBackward.apply(*_fold(info.batch_size, in_dims, args))
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in grads), (0, 0)
