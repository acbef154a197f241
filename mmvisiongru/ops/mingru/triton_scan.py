"""Triton backend: one fused kernel a pass over all paths, for NVIDIA GPUs; see ``triton_kernels.py``.

A pass that is one launch moves 6 bytes per inner element in 16-bit types, 12 backward; in chunks, 10 and 16.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import triton_launch
from ..triton_launch import OPTIONS, STATES, Strides, alike, on, unsupported
from .interface import Gates, Mode

__all__ = ['backward', 'forward', 'unsupported']


class _Launch(NamedTuple):
    """How the kernels of a pass are launched."""

    grid: tuple[int, int]
    arguments: dict
    backward: bool

    @classmethod
    def of(cls, x: Gates, mode: Mode, backward: bool) -> '_Launch':
        """The launch for maps (B, H, W, P, D)."""
        processors = triton_launch.processors(x.gate.device)
        grid, arguments = triton_launch.launch(x.gate.shape, mode.paths, backward, processors)
        return cls(grid, dict(arguments, LINEAR=mode.candidate == 'linear'), backward)

    @property
    def chunked(self) -> bool:
        return self.arguments['chunks'] > 1

    def enter_chunks(self, gate, value, state: Tensor | None) -> Tensor:
        """State before each chunk, (chunks, lanes), of maps as kernels take them.

        ``value`` is hidden, or backward the gradient of h.
        """
        from .. import triton_affine
        from . import triton_kernels

        chunks, lanes = self.arguments['chunks'], self.arguments['lanes']
        sums = torch.empty(2, chunks, lanes, dtype=torch.float32, device=gate.data.device)
        triton_kernels.chunk_sums[self.grid](gate, value, sums, BACKWARD=self.backward, **self.arguments)
        grid = (-(-lanes // STATES['LANES']),)
        triton_affine.chunk_states[grid](
            sums, state, lanes, chunks, STEPS=self.arguments['STEPS'], **STATES, **OPTIONS
        )
        return sums[1]


def forward(x: Gates, out: Tensor, mode: Mode, state: Tensor | None = None) -> None:
    """Scan, see ``passes.py``."""
    if not out.numel():
        return
    from . import triton_kernels as kernels

    assert out.is_contiguous()
    x = kernels.Gates(*alike(*x))
    launch = _Launch.of(x, mode, backward=False)
    with on(out.device):
        if state is not None:
            state = state.to(torch.float32).contiguous()
        if launch.chunked:
            gate, hidden = (kernels.Map(data, x.strides) for data in (x.gate, x.hidden))
            state = launch.enter_chunks(gate, hidden, state)
        kernels.scan_forward[launch.grid](x, out, state, CHUNKED=launch.chunked, **launch.arguments)


def backward(grad: Tensor, x: Gates, h: Tensor, out: Gates, mode: Mode) -> None:
    """Write the gradients of :func:`forward`, see ``passes.py``."""
    if not h.numel():
        return
    from . import triton_kernels as kernels

    x, out = kernels.Gates(*alike(*x)), kernels.Gates(*out, Strides.of(out.gate))
    assert out.strides == Strides.of(out.hidden)
    grad, h, dense = alike(grad.contiguous(), h.contiguous())
    launch = _Launch.of(x, mode, backward=True)
    state = None
    with on(h.device):
        if launch.chunked:
            state = launch.enter_chunks(kernels.Map(x.gate, x.strides), kernels.Map(grad, dense), None)
        kernels.scan_backward[launch.grid](grad, x, h, out, state, CHUNKED=launch.chunked, **launch.arguments)
