"""Scan paths over a row-major map: the order in which its tokens are read."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Path(NamedTuple):
    """Direction of a scan path, from which every backend derives its addresses."""

    column: bool  # down the columns: the rows of the transposed map
    reverse: bool  # from the last token to the first


PATHS = {
    'row': Path(column=False, reverse=False),
    'row_reverse': Path(column=False, reverse=True),
    'column': Path(column=True, reverse=False),
    'column_reverse': Path(column=True, reverse=True),
}


def check_paths(paths: Sequence[str], name: str = 'paths') -> None:
    """Raise ValueError unless ``paths``, an argument called ``name``, is a list of known paths."""
    # A set has another order in each process.
    if not isinstance(paths, (list, tuple)) or not paths or any(path not in PATHS for path in paths):
        raise ValueError(f'{name} must be a list out of {tuple(PATHS)}, got {paths!r}')


def as_sequence(x: Tensor, column: bool) -> Tensor:
    """Read a map (B, H, W, D) as a sequence (B, L, D), a copy for columns."""
    return (x.transpose(1, 2) if column else x).flatten(1, 2)


def write_sequence(x: Tensor, column: bool, out: Tensor) -> None:
    """Write a sequence (B, L, D) back into a map ``out`` (B, H, W, D), which may be strided."""
    target = out.transpose(1, 2) if column else out
    target.copy_(x.view(target.shape))


def steps(length: int, reverse: bool):
    """Positions in reading order."""
    return reversed(range(length)) if reverse else range(length)
