"""Comparison of every backend that runs on this machine with float64."""

import math
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor

from mmvisiongru.ops import bi_wkv, mingru, mingru_scan_2d, wkv
from mmvisiongru.ops.backends import Backends
from mmvisiongru.ops.scan_paths import PATHS

# The only tolerances of the operators: 'max' is max|got - ref| / max|ref|, 'rms' the same of root mean
# squares. 16-bit entries are dominated by the rounding of saved states and of results.
TOLERANCE = {
    torch.float64: ('max', 1e-12),
    torch.float32: ('max', 2e-6),
    torch.bfloat16: ('rms', 4e-3),
    torch.float16: ('rms', 1e-3),
}
# Backends and calls of each operator: both candidates along all paths, both distances.
SCANS = [partial(mingru_scan_2d, candidate=c, paths=tuple(PATHS)) for c in mingru.CANDIDATES]
OPERATORS = [
    (mingru.BACKENDS, SCANS),
    *((wkv.BACKENDS[d], [partial(bi_wkv, distance=d)]) for d in wkv.DISTANCES),
]
SMALL_SIZES = ((1, 1), (1, 2), (5, 7), (7, 28))
SIZES = (*SMALL_SIZES, (28, 28), (64, 65), (312, 312))
REFERENCE_TOKENS = 196  # beyond, 'torch' in float64 takes the place of the slow reference
CHANNELS = 3  # per path
DEVICES = [torch.device('cpu'), *(torch.device('cuda', i) for i in range(torch.cuda.device_count()))]


def error(got: Tensor, ref: Tensor, measure: str) -> float:
    """Error by a measure of TOLERANCE; absolute where the expected values vanish."""
    diff, ref = got.double().cpu() - ref.double().cpu(), ref.double().cpu()
    size, scale = (x.abs().max() if measure == 'max' else x.square().mean().sqrt() for x in (diff, ref))
    return (size / scale if scale > 1e-12 else size).item()


def inputs(table: Backends, shape: tuple[int, int, int], channels: int, dtype: torch.dtype) -> list[Tensor]:
    """Inputs of an operator on maps (B, H, W), then a gradient of its output."""
    generator, (B, H, W) = torch.Generator().manual_seed(0), shape
    if table is mingru.BACKENDS:
        return [torch.randn(*shape, n * channels, generator=generator).to(dtype) for n in (2, 1)]
    wide = torch.promote_types(dtype, torch.float32)
    w, u = (torch.linspace(*ends, channels, dtype=wide) / (H * W) for ends in ((-5, 3), (-1, 1)))
    return [w, u, *(torch.randn(B, H * W, channels, generator=generator).to(dtype) for _ in range(3))]


def run(function: Callable, tensors: list[Tensor], backend: str) -> list[Tensor]:
    """Output and gradients of all inputs."""
    *leaves, cotangent = (x.detach().requires_grad_() for x in tensors)
    out = function(*leaves, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.detach())]


def worst(table: Backends, calls: list, dtype: torch.dtype, sizes: tuple) -> dict[tuple, tuple[float, str]]:
    """Largest error, and its map or message, by device and backend."""
    found = {(device, name): (0.0, '') for device in DEVICES for name in table.runnable(device, dtype)}
    channels = CHANNELS * (len(PATHS) if table is mingru.BACKENDS else 1)
    for function, size in product(calls, sizes):
        tensors, short = inputs(table, (2, *size), channels, dtype), math.prod(size) <= REFERENCE_TOKENS
        wide = [x.double() for x in tensors]
        expected = cache(partial(run, function, wide, 'reference' if short else 'torch'))
        for device, name in found if short else [key for key in found if key[1] != 'reference']:
            try:
                pairs = zip(expected(), run(function, [x.to(device) for x in tensors], name), strict=True)
                errors = [error(got, ref, TOLERANCE[dtype][0]) for ref, got in pairs]
                new = max(e if e == e else float('inf') for e in errors), '{} x {}'.format(*size)
            # A failure belongs into the table, whatever it is.
            except Exception as failure:
                new = float('inf'), ' '.join(f'{type(failure).__name__}: {failure}'.split())[:100]
            found[device, name] = max(found[device, name], new)
    return found


def check(small: bool = False) -> bool:
    """Print a table of the largest errors; True if all are within their bounds."""
    right, start = True, time.perf_counter()
    for (table, calls), (dtype, (_, bound)) in product(OPERATORS, TOLERANCE.items()):
        found = worst(table, calls, dtype, SMALL_SIZES if small else SIZES)
        for (device, name), (size, where) in found.items():
            right = right and size <= bound
            columns = f'{table.operator:<28} {device!s:<7} {name:<10} {str(dtype)[6:]:<9} error {size:.0e}'
            print(f'{columns} of {bound:.0e}  {where}{"" if size <= bound else "  WRONG"}', flush=True)
    print('all within their bounds' if right else 'WRONG', f'{time.perf_counter() - start:.0f} s', sep=', ')
    return right
