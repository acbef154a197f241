"""Operators under ``torch.func`` and forward-mode differentiation, which torch.library does not cover."""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is under way."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def refuse(message: str) -> Callable:
    """A derivative that there is not, for an operator or a class of ``torch.autograd.Function``."""

    def derivative(ctx, *grads):
        raise RuntimeError(message)

    return derivative
