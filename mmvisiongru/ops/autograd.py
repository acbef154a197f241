"""Gradients of an operator: in graphs, in eager mode, and under the transforms of ``torch.func``."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.flop_counter import register_flop_formula


def with_gradient(
    name: str, operator, backward, tensors: int, saves_output: bool, dim: int, flops: tuple[int, int]
) -> Callable:
    """Register a custom operator's gradient, with its shapes, and FLOPs; return the function to call it by.

    ``torch.library`` registers gradients that compilers understand, but ``torch.func`` does not, and forward
    mode drops tangents silently. Outside of a graph the operator is therefore called by a ``Function``;
    a ``jvp`` within a compiled function is not noticed, and its tangent is zero.

    Args:
        name (str): Name of the operator, without its namespace.
        operator, backward: The custom operator, and the one that computes the gradients of its tensors from
            that of the output, the saved tensors, and the options, which are strings and truth values.
        tensors (int): Number of arguments that have a gradient, the first ones.
        saves_output (bool): Whether ``backward`` takes the output behind these.
        dim (int): 0 or -1, a dimension that all tensors have and that the operator treats element by element;
            ``vmap`` folds its own dimension into it.
        flops (tuple[int, int]): Per element of the output, forward and backward.
    """

    def setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors], *([output] if saves_output else []))
        ctx.options = [x for x in inputs[tensors:] if isinstance(x, (str, bool))]
        ctx.others = len(inputs) - tensors

    def gradient(backward, ctx, grad):
        grads = backward(grad, *ctx.saved_tensors, *ctx.options)
        return *((grads,) if torch.is_tensor(grads) else grads), *(None,) * ctx.others

    def refuse(ctx, *_):
        raise RuntimeError(f'{name} has no second or forward-mode derivatives, only first reverse-mode ones')

    def fold(x, mapped: int | None, size: int):
        if not torch.is_tensor(x):
            return x
        at = dim if dim == 0 else -2
        x = x.unsqueeze(at).repeat_interleave(size, at) if mapped is None else x.movedim(mapped, at)
        return x.flatten(at, at + 1)

    def unfold(x: Tensor, size: int) -> Tensor:
        return x.unflatten(dim, (size, x.size(dim) // size)).movedim(dim if dim == 0 else -2, 0)

    class Differentiable(Function):
        jvp = staticmethod(refuse)

        @classmethod
        def vmap(cls, info, in_dims, *args):
            out = cls.apply(*(fold(*pair, info.batch_size) for pair in zip(args, in_dims, strict=True)))
            unfolded = [unfold(x, info.batch_size) for x in ((out,) if torch.is_tensor(out) else out)]
            return unfolded[0] if torch.is_tensor(out) else tuple(unfolded), 0

    class Gradient(Differentiable):
        forward = staticmethod(lambda *args: backward(*args))
        setup_context = staticmethod(lambda ctx, inputs, output: None)
        backward = staticmethod(refuse)

    class Operator(Differentiable):
        forward = staticmethod(lambda *args: operator(*args))
        setup_context = staticmethod(setup)
        backward = staticmethod(
            lambda ctx, grad: gradient(backward if _in_graph() else Gradient.apply, ctx, grad)
        )

    @backward.register_fake
    def _(grad, *args):
        grads = tuple(x.new_empty(x.shape) for x in args[:tensors])
        return grads if tensors > 1 else grads[0]

    operator.register_autograd(lambda ctx, grad: gradient(backward, ctx, grad), setup_context=setup)
    backward.register_autograd(refuse)

    ops = getattr(torch.ops.mmvisiongru, name), getattr(torch.ops.mmvisiongru, f'{name}_backward')
    register_flop_formula(ops[0])(lambda *args, out_shape, **_: flops[0] * torch.Size(out_shape).numel())
    register_flop_formula(ops[1])(lambda grad_shape, *args, **_: flops[1] * torch.Size(grad_shape).numel())

    def call(*args) -> Tensor:
        return operator(*args) if _in_graph() else Operator.apply(*args)

    return call


def _in_graph() -> bool:
    """Whether calls are recorded, where the operator stands for itself."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
