"""Arguments of forward and backward in every backend of the scan.

    forward(x, out, options, state=None)    scan x into out, from state (B, P, D) or from 0
    backward(grad, x, h, out, options)      write the gradients of x into out, given grad = dL/dh and h

All maps are (B, H, W, P, D), with P paths.
"""

from functools import cache
from typing import NamedTuple

from torch import Tensor

from ..scan_paths import PATHS, Path


class PreActivations(NamedTuple):
    """Gate and hidden before their nonlinearities, or the gradients of both: two maps (B, H, W, P, D)."""

    gate: Tensor
    hidden: Tensor

    def path(self, p: int) -> 'PreActivations':
        """The maps (B, H, W, D) of one path."""
        return PreActivations(self.gate[..., p, :], self.hidden[..., p, :])


class ScanOptions(NamedTuple):
    """Paths and candidate of a scan."""

    paths: tuple[Path, ...]
    candidate: str

    @classmethod
    @cache
    def of(cls, paths: str, candidate: str) -> 'ScanOptions':
        """From the arguments of the operator, which takes paths as 'row,column_reverse'."""
        return cls(tuple(PATHS[path] for path in paths.split(',')), candidate)
