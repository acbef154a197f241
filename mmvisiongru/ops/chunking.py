"""Cutting a sequence into chunks that are worked on at the same time."""

import torch
from torch import Tensor


def steps(length: int, reverse: bool):
    """Positions in reading order."""
    return reversed(range(length)) if reverse else range(length)


def split(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut (B, L, D) into n whole chunks (B, n, size, D) and a tail (B, L - n size, D); both are views."""
    whole = x.size(1) - x.size(1) % size
    return x[:, :whole].unflatten(1, (whole // size, size)), x[:, whole:]


def before(x: Tensor, dim: int = 1) -> Tensor:
    """Sum of what comes before, without subtracting anything."""
    sums = x.cumsum(dim)
    return torch.cat((torch.zeros_like(sums.narrow(dim, 0, 1)), sums.narrow(dim, 0, x.size(dim) - 1)), dim)
