"""Scan paths over a row-major map: the order in which its tokens are read."""

from torch import Tensor

PATHS = ('row', 'row_reverse', 'column', 'column_reverse')


def parse_paths(paths: str) -> tuple[tuple[bool, bool], ...]:
    """Split ``'row,column_reverse'`` into one (is_column, is_reverse) pair a path."""
    return tuple((p.startswith('column'), p.endswith('reverse')) for p in paths.split(','))


def as_sequence(x: Tensor, column: bool) -> Tensor:
    """Read a map (B, H, W, D) as a sequence (B, L, D); a column path needs a copy unless the map is thin."""
    return (x.transpose(1, 2) if column else x).flatten(1, 2)


def write_sequence(x: Tensor, column: bool, out: Tensor) -> None:
    """Write a sequence (B, L, D) back into a map ``out`` (B, H, W, D), which may be strided."""
    target = out.transpose(1, 2) if column else out
    target.copy_(x.view(target.shape))
