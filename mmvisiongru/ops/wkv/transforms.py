"""Bi-WKV under ``torch.func`` and forward-mode differentiation, which torch.library does not cover.

y is an average of v with weights that w, u and k give. With tangents k' and v' it moves by

y' = average(v k' + v') - y average(k'),

two averages with the same weights. Channels do not mix: a mapped dimension is so many more of them.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from ..transforms import refuse

no_second_derivative = refuse('bi_wkv has no second derivative')


def _into_channels(size: int, in_dims: tuple, args: tuple) -> list:
    """Take the mapped dimension of tensors (..., C) into their channels."""
    folded = []
    for dim, x in zip(in_dims, args, strict=True):
        if torch.is_tensor(x):
            x = (
                x.unsqueeze(-2).expand(*x.shape[:-1], size, -1) if dim is None else x.movedim(dim, -2)
            ).flatten(-2)
        folded.append(x)
    return folded


class BiWkv(Function):
    """``mmvisiongru::bi_wkv``: w, u (C), k, v (B, T, C), distance, backend -> y (B, T, C)."""

    @staticmethod
    def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, distance: str, backend: str) -> Tensor:
        """Average."""
        return torch.ops.mmvisiongru.bi_wkv(w, u, k, v, distance, backend)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Keep what both kinds of derivatives need."""
        *tensors, ctx.distance, ctx.backend = inputs
        ctx.save_for_backward(*tensors, output)
        ctx.save_for_forward(*tensors, output)
        # So that a tangent which is zero can be told from one that there is not.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad: Tensor | None):
        """Gradients of w, u, k and v."""
        if grad is None:
            return (None,) * 6
        *tensors, _ = ctx.saved_tensors
        return *BiWkvBackward.apply(grad, *tensors, ctx.distance, ctx.backend), None, None

    @staticmethod
    def jvp(
        ctx, w_tangent, u_tangent, k_tangent: Tensor | None, v_tangent: Tensor | None, *options
    ) -> Tensor:
        """Tangent of y, (B, T, C)."""
        if w_tangent is not None or u_tangent is not None:
            raise RuntimeError('bi_wkv has no forward-mode derivative by w and u; reverse mode has it')
        w, u, k, v, y = ctx.saved_tensors

        def average(values):
            return BiWkv.apply(w, u, k, values, ctx.distance, ctx.backend)

        values = v_tangent
        if k_tangent is not None:
            values = v * k_tangent if values is None else values + v * k_tangent
        tangent = average(values)
        return tangent if k_tangent is None else tangent - y * average(k_tangent)

    @staticmethod
    def vmap(info, in_dims, *args):
        """Average all at once."""
        y = BiWkv.apply(*_into_channels(info.batch_size, in_dims, args))
        return y.unflatten(2, (info.batch_size, -1)), 2


class BiWkvBackward(Function):
    """``mmvisiongru::bi_wkv_backward``."""

    @staticmethod
    def forward(grad, w, u, k, v, distance, backend) -> tuple[Tensor, ...]:
        """Gradients of w, u, k and v."""
        return torch.ops.mmvisiongru.bi_wkv_backward(grad, w, u, k, v, distance, backend)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Nothing is kept, as nothing follows."""

    backward = jvp = staticmethod(no_second_derivative)

    @staticmethod
    def vmap(info, in_dims, *args):
        """Gradients of all at once."""
        grads = BiWkvBackward.apply(*_into_channels(info.batch_size, in_dims, args))
        return tuple(x.unflatten(-1, (info.batch_size, -1)) for x in grads), (0, 0, 2, 2)
