"""Arguments of forward and backward in every backend of Bi-WKV.

    forward(x, y, distance)             write Bi-WKV of x into y
    backward(grad, x, out, distance)    write the gradients of x into out, given grad = dL/dy

A backend also exports ``LIMIT``: by dtype of its sums, the largest difference between the exponents -w T, 0
and u of a channel that it handles.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# For backends that sum without a running maximum. A weight may be e^64 times another, and keys that are more
# than e^87 below the largest, which float32 drops, still count for less than 1e-9 of a sum.
LIMIT = {torch.float32: 64.0, torch.float64: 640.0}


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
