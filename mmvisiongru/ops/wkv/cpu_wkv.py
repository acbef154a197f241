"""CPU backend: Bi-WKV of ``csrc/bi_wkv.cpp``, compiled on first use.

Forward takes two passes over memory, parallel over images, chunks of tokens and channels, with as many
threads as torch uses. Backward takes three: the sums for dw and du in float64, then the sums of gradients.
"""

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import cache, partial

import torch
from torch import Tensor

from .. import native
from ..backends import accumulation_dtype
from ..native import Map
from .interface import Wkv

LIBRARY = 'bi_wkv'


class Sizes(ctypes.Structure):
    """``struct Sizes`` of csrc/bi_wkv.cpp."""

    _fields_ = [(name, c_int64) for name in 'BTC']


class Decay(ctypes.Structure):
    """``struct Decay`` of csrc/bi_wkv.cpp."""

    _fields_ = [(name, c_void_p) for name in ('delta', 'keep', 'chunk', 'bonus', 'powers')]


HEAD = (c_int, Sizes, c_int, Decay, c_void_p, Map, Map)
ARGUMENTS = dict(forward=(*HEAD, Map, c_void_p), backward=(*HEAD, *[Map] * 5, c_void_p, c_void_p))

unsupported = partial(native.unsupported, LIBRARY)


@cache
def _chunk() -> int:
    return c_int.in_dll(native.library(LIBRARY)[0], 'bi_wkv_chunk').value


def _map(x: Tensor) -> Map:
    """(B, T, C) as a map (B, 1, T, 1, C)."""
    return Map.of(x[:, None, :, None])


def _call(name: str, x: Wkv, *arguments) -> None:
    B, T, C = x.k.shape
    w, dtype = x.w.double(), accumulation_dtype(x.k.dtype)
    powers = torch.exp(-w * torch.arange(_chunk() + 1)[:, None])
    tables = -torch.expm1(-w), powers[1], powers[-1], x.u.double().exp(), powers[:-1].to(dtype)
    top = x.k.amax(1).to(dtype)
    states = torch.empty(B, -(-T // _chunk()), 4 if name == 'forward' else 8, C, dtype=torch.float64)
    head = native.DTYPES[x.k.dtype], Sizes(B, T, C), native.threads(x.k.numel())
    decay = Decay(*(table.data_ptr() for table in tables))
    run = native.function(LIBRARY, f'bi_wkv_{name}', ARGUMENTS[name])
    run(*head, decay, top.data_ptr(), _map(x.k), _map(x.v), *arguments, states.data_ptr())


def forward(x: Wkv, y: Tensor, distance: str) -> None:
    """Average, see ``interface.py``."""
    _call('forward', x, _map(y))


def backward(grad: Tensor, x: Wkv, out: Wkv, distance: str) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    B, T, C = x.k.shape
    adjoint = torch.empty(2, B, T, C, dtype=accumulation_dtype(x.k.dtype))
    parts = torch.empty(B, -(-T // _chunk()), 2, C, dtype=torch.float64)
    maps = [_map(t) for t in (grad, out.k, out.v, *adjoint)]
    _call('backward', x, *maps, parts.data_ptr())
    for target, sums in zip((out.w, out.u), parts.sum((0, 1)), strict=True):
        target.copy_(sums)
