"""Triton backend: two kernels over chunks of tokens, three backward; see ``triton_kernels.py``.

It uses no atomics, so results are the same from run to run.
"""

import math

import torch
from torch import Tensor

from ..triton_launch import OPTIONS, on, unsupported
from .interface import Wkv

__all__ = ['backward', 'forward', 'unsupported']

STEPS = 16  # tokens of a chunk, in registers
# One channel per thread: a warp reads 64 bytes of 16-bit types at a time.
TILE = dict(STEPS=STEPS, ROWS=4, LANES=32, num_warps=4)
MAX_TOKENS = 65535 * TILE['ROWS'] * STEPS  # CUDA has no more programs in the second dimension of a grid


class _Launch:
    """Arguments that the kernels share for x."""

    def __init__(self, x: Wkv):
        from .triton_kernels import Inputs, Map

        B, T, C = x.k.shape
        if T > MAX_TOKENS:
            raise ValueError(f"bi_wkv backend 'triton' takes up to {MAX_TOKENS} tokens, got {T}; 'torch' any")
        self.chunks = -(-T // STEPS)
        self.device, self.state = x.k.device, (B, self.chunks, 2, C)
        self.w = x.w.double()
        keep, self.bonus = torch.exp(-self.w), x.u.double().exp()
        # 1 - delta would lose the digits of a small e^{-w}.
        small = keep < 0.5
        decay = torch.stack(((~small).double(), torch.where(small, -keep, -torch.expm1(-self.w))))
        self.inputs = Inputs(Map.of(x.k), Map.of(x.v), x.k.amax(1).float(), decay)
        # Clamp to T, so that masked steps stay finite.
        step = torch.arange(STEPS, device=self.device).clamp(max=T)[:, None]
        self.powers = torch.exp(-self.w * step).float()
        self.grid = (B * -(-C // TILE['LANES']), -(-self.chunks // TILE['ROWS']))
        kinds_stride = math.prod(self.state)
        self.sizes = dict(D=C, L=T, chunks=self.chunks, kinds_stride=kinds_stride, **TILE, **OPTIONS)

    def states(self, kinds: int, dtype: torch.dtype) -> Tensor:
        """Memory for the states of the chunks: past, future and, for kinds = 4, their moments."""
        return torch.empty(kinds, *self.state, dtype=dtype, device=self.device)

    def enter(self, totals: Tensor) -> Tensor:
        """States entering each chunk, from those leaving each; computed in float64."""
        # Kinds alternate between past and future; the future is the past of the chunks in reverse order.
        past = self._enter(*totals[0::2].double())
        future = [x.flip(1) for x in self._enter(*totals[1::2].double().flip(2))]
        return torch.stack([x for pair in zip(past, future, strict=True) for x in pair]).to(totals.dtype)

    def _enter(self, totals: Tensor, moments: Tensor | None = None) -> list[Tensor]:
        """Sums over the chunks before each one of totals (B, chunks, 2, C), and their moments."""
        q = torch.arange(self.chunks, device=self.device, dtype=torch.float64).view(-1, 1, 1)
        # A total decays over the q - p - 1 chunks in between.
        grow, decay = torch.exp(self.w * STEPS * q), torch.exp(-self.w * STEPS * (q - 1))
        sums = _before(totals * grow)
        if moments is None:
            return [sums * decay]
        farther = STEPS * ((q - 1) * sums - _before(totals * grow * q))
        return [sums * decay, (_before(moments * grow) + farther) * decay]


def _before(x: Tensor) -> Tensor:
    """Exclusive cumulative sum over the chunks; a difference of sums would cancel digits."""
    sums = x.cumsum(1)
    return torch.cat((torch.zeros_like(sums[:, :1]), sums[:, :-1]), 1)


def forward(x: Wkv, y: Tensor, distance: str) -> None:
    """Average, see ``interface.py``."""
    from . import triton_kernels

    assert y.is_contiguous()
    launch = _Launch(x)
    totals = launch.states(2, torch.float32)
    inputs, sizes = launch.inputs, launch.sizes
    with on(launch.device):
        triton_kernels.totals[launch.grid](inputs, totals, MOMENTS=False, **sizes)
        entered = launch.enter(totals)
        triton_kernels.average[launch.grid](inputs, launch.bonus, launch.powers, entered, y, **sizes)


def backward(grad: Tensor, x: Wkv, out: Wkv, distance: str) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    from . import triton_kernels

    launch = _Launch(x)
    totals, ratio_totals = launch.states(4, torch.float64), launch.states(2, torch.float32)
    parts = launch.states(1, torch.float64)
    ratios = torch.empty(2, *x.k.shape, dtype=torch.float32, device=launch.device)
    inputs, bonus, grid, sizes = launch.inputs, launch.bonus, launch.grid, launch.sizes
    with on(launch.device):
        triton_kernels.totals[grid](inputs, totals, MOMENTS=True, **sizes)
        sizes['ratios_stride'] = ratios[0].numel()
        given = triton_kernels.Map.of(grad), inputs, bonus, launch.enter(totals)
        triton_kernels.adjoint[grid](*given, ratios, parts, ratio_totals, **sizes)
        given = inputs, bonus, launch.powers, ratios, launch.enter(ratio_totals)
        triton_kernels.gradients[grid](*given, out.k, out.v, **sizes)
    for target, sums in zip((out.w, out.u), parts.sum((0, 1, 2)), strict=True):
        target.copy_(sums)
