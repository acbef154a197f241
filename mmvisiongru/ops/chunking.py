"""Cut a sequence into chunks that are processed at the same time."""

import torch
from torch import Tensor


def steps(length: int, reverse: bool):
    """Positions in reading order."""
    return reversed(range(length)) if reverse else range(length)


def split(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut (B, L, D) into n chunks (B, n, size, D) and a tail (B, L - n size, D), both views."""
    whole = x.size(1) - x.size(1) % size
    return x[:, :whole].unflatten(1, (whole // size, size)), x[:, whole:]


def before(x: Tensor, dim: int = 1) -> Tensor:
    """Exclusive cumulative sum; a difference of sums would cancel digits."""
    sums = x.cumsum(dim)
    return torch.cat((torch.zeros_like(sums.narrow(dim, 0, 1)), sums.narrow(dim, 0, x.size(dim) - 1)), dim)
