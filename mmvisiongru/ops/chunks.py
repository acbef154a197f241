"""Cutting a sequence into chunks that are worked on at the same time."""

from torch import Tensor


def steps(length: int, reverse: bool):
    """Positions in reading order."""
    return reversed(range(length)) if reverse else range(length)


def split(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut (B, L, D) into n whole chunks (B, n, size, D) and a tail (B, L - n size, D); both are views."""
    whole = x.size(1) - x.size(1) % size
    return x[:, :whole].unflatten(1, (whole // size, size)), x[:, whole:]
