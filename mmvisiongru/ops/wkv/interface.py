"""Arguments of forward and backward in every backend of Bi-WKV.

forward(x, y, distance)             write Bi-WKV of x into y
backward(grad, x, out, distance)    write the gradients of x into out, given grad = dL/dy
"""

from typing import NamedTuple

from torch import Tensor


class Wkv(NamedTuple):
    """The arguments of Bi-WKV, or their gradients."""

    w: Tensor  # (C), decay per token
    u: Tensor  # (C), bonus of the token itself
    k: Tensor  # (B, T, C)
    v: Tensor  # (B, T, C)


PIECES = 32  # of a sequence in the released kernel, whatever its length


def piece_length(tokens: int) -> int:
    """Tokens of a piece of the released kernel."""
    return -(-tokens // PIECES)
