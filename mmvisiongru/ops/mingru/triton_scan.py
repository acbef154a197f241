"""Triton backend: one fused kernel for all paths, forward and backward; see ``triton_kernels.py``.

In 16-bit types a single launch moves 6 bytes per inner element forward and 12 backward, in chunks 10 and 16.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import triton_launch
from ..triton_launch import OPTIONS, STATES, Strides, on, same_layout, unsupported
from .interface import PreActivations, ScanOptions

__all__ = ['backward', 'forward', 'unsupported']


class _Launch(NamedTuple):
    """Grid and arguments of the kernels of a forward or backward call."""

    grid: tuple[int, int]
    arguments: dict
    backward: bool
    chunked: bool

    @classmethod
    def of(cls, x: PreActivations, options: ScanOptions, backward: bool) -> '_Launch':
        """The launch for maps (B, H, W, P, D)."""
        processors = triton_launch.processors(x.gate.device)
        grid, arguments = triton_launch.launch(x.gate.shape, options.paths, backward, processors)
        arguments = dict(arguments, LINEAR=options.candidate == 'linear')
        return cls(grid, arguments, backward, arguments['chunks'] > 1)

    def enter_chunks(self, gate, value, state: Tensor | None) -> Tensor:
        """State before each chunk, (chunks, lanes), from Maps; ``value`` is hidden, or backward dL/dh."""
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


def forward(x: PreActivations, out: Tensor, options: ScanOptions, state: Tensor | None = None) -> None:
    """Scan, see ``interface.py``."""
    if not out.numel():
        return
    from . import triton_kernels as kernels

    assert out.is_contiguous()
    x = kernels.PreActivations(*same_layout(*x))
    launch = _Launch.of(x, options, backward=False)
    with on(out.device):
        if state is not None:
            state = state.to(torch.float32).contiguous()
        if launch.chunked:
            gate, hidden = (kernels.Map(data, x.strides) for data in (x.gate, x.hidden))
            state = launch.enter_chunks(gate, hidden, state)
        kernels.scan_forward[launch.grid](x, out, state, CHUNKED=launch.chunked, **launch.arguments)


def backward(grad: Tensor, x: PreActivations, h: Tensor, out: PreActivations, options: ScanOptions) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    if not h.numel():
        return
    from . import triton_kernels as kernels

    x, out = kernels.PreActivations(*same_layout(*x)), kernels.PreActivations(*out, Strides.of(out.gate))
    assert out.strides == Strides.of(out.hidden)
    grad, h, dense = same_layout(grad.contiguous(), h.contiguous())
    launch = _Launch.of(x, options, backward=True)
    state = None
    with on(h.device):
        if launch.chunked:
            state = launch.enter_chunks(kernels.Map(x.gate, x.strides), kernels.Map(grad, dense), None)
        kernels.scan_backward[launch.grid](grad, x, h, out, state, CHUNKED=launch.chunked, **launch.arguments)
