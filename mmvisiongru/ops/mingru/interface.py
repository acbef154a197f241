"""What the passes of every backend take.

    forward(x, out, mode, state=None)       scan x into out, from state (B, P, D) or from 0
    backward(grad, x, h, out, mode)         gradients of x into out, given dL/dh and h

All maps are (B, H, W, P, D), one path p of the P after the other.
"""

from functools import cache
from typing import NamedTuple

from torch import Tensor

from ..scan_paths import PATHS, Path


class Gates(NamedTuple):
    """The pre-activations, or their gradients: two maps (B, H, W, P, D)."""

    gate: Tensor
    hidden: Tensor

    def path(self, p: int) -> 'Gates':
        """The maps (B, H, W, D) of one path."""
        return Gates(self.gate[..., p, :], self.hidden[..., p, :])


class Mode(NamedTuple):
    """How a map is scanned."""

    paths: tuple[Path, ...]
    candidate: str

    @classmethod
    @cache
    def of(cls, paths: str, candidate: str) -> 'Mode':
        """Read paths as the operator takes them, 'row,column_reverse'."""
        return cls(tuple(PATHS[path] for path in paths.split(',')), candidate)
