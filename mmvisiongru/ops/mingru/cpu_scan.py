"""CPU backend: the fused scan of ``csrc/mingru_scan.cpp``, compiled on first use.

Sigmoid, candidate and recurrence of all paths take one pass over memory, parallel over images, paths and
channels, with as many threads as torch uses.
"""

from ctypes import POINTER, c_int, c_uint8, c_void_p
from functools import cache, partial

from torch import Tensor

from .. import native
from ..backends import accumulation_dtype
from ..native import Map, Shape
from ..scan_paths import Path
from .interface import PreActivations, ScanOptions

LIBRARY = 'mingru_scan'
HEAD = (c_int, c_int, Shape, POINTER(c_uint8), POINTER(c_uint8), c_int)
ARGUMENTS = dict(forward=(*HEAD, Map, Map, Map, c_void_p), backward=(*HEAD, *[Map] * 6))

unsupported = partial(native.unsupported, LIBRARY)


@cache
def _flags(paths: tuple[Path, ...]) -> tuple:
    """For each path: whether it reads columns, and whether it is reversed."""
    return tuple((c_uint8 * len(paths))(*flags) for flags in zip(*paths, strict=True))


def _call(name: str, h: Tensor, options: ScanOptions, *arguments) -> None:
    # The library divides work among threads, which needs some.
    if not h.numel():
        return
    column, reverse = _flags(options.paths)
    linear, threads = options.candidate == 'linear', native.threads(h.numel())
    head = linear, native.DTYPES[h.dtype], Shape(*h.shape), column, reverse, threads
    native.function(LIBRARY, f'mingru_{name}', ARGUMENTS[name])(*head, *arguments)


def forward(x: PreActivations, out: Tensor, options: ScanOptions, state: Tensor | None = None) -> None:
    """Scan, see ``interface.py``."""
    if state is not None:
        state = state.to(accumulation_dtype(out.dtype)).contiguous()
    maps = map(Map.of, (*x, out))
    _call('forward', out, options, *maps, None if state is None else state.data_ptr())


def backward(grad: Tensor, x: PreActivations, h: Tensor, out: PreActivations, options: ScanOptions) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    _call('backward', h, options, *map(Map.of, (grad, *x, h, *out)))
