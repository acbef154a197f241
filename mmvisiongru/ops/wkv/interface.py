"""What the passes of every backend take.

    forward(x, y, distance)             Bi-WKV of x into y
    backward(grad, x, out, distance)    gradients by x into out, given dL/dy

A backend also exports ``LIMIT``: by dtype of accumulation, the largest magnitude that the exponents of one
sequence may reach, |w| T (which is |decay|) and |u|.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Of a backend that sums without running maxima: leaves e^24 of float32 and e^69 of float64 for the number of
# tokens and the values.
LIMIT = {torch.float32: 64.0, torch.float64: 640.0}


class Wkv(NamedTuple):
    """The arguments of Bi-WKV, or their gradients."""

    w: Tensor  # (C), decay a token
    u: Tensor  # (C), bonus of the token itself
    k: Tensor  # (B, T, C)
    v: Tensor  # (B, T, C)


# The released kernel cuts a sequence into so many pieces, whatever its length.
PIECES = 32


def piece_length(tokens: int) -> int:
    """Tokens of a piece of the released kernel."""
    return -(-tokens // PIECES)
