"""Triton backend: one fused kernel for all paths, forward and backward; see ``triton_kernels.py``.

In 16-bit types a single launch moves 6 bytes per inner element forward and 12 backward, in chunks 10 and 16.
"""

import torch
from torch import Tensor

from .. import triton_launch
from ..triton_launch import OPTIONS, STATES, Strides, on, same_layout, unsupported
from .interface import PreActivations, ScanOptions

__all__ = ['backward', 'forward', 'unsupported']


def _launch(shape: torch.Size, device: torch.device, options: ScanOptions, backward: bool):
    """Grid and arguments for maps of ``shape`` (B, H, W, P, D), and whether they are cut into chunks."""
    processors = triton_launch.processors(device)
    grid, arguments = triton_launch.launch(shape, options.paths, backward, processors)
    return grid, dict(arguments, LINEAR=options.candidate == 'linear'), arguments['chunks'] > 1


def _enter_chunks(grid, arguments: dict, gate, value, state: Tensor | None, backward: bool) -> Tensor:
    """State before each chunk, (chunks, lanes), from Maps; ``value`` is hidden, or backward dL/dh."""
    from .. import triton_affine
    from . import triton_kernels

    chunks, lanes = arguments['chunks'], arguments['lanes']
    sums = torch.empty(2, chunks, lanes, dtype=torch.float32, device=gate.data.device)
    triton_kernels.chunk_sums[grid](gate, value, sums, BACKWARD=backward, **arguments)
    grid = (-(-lanes // STATES['LANES']),)
    triton_affine.chunk_states[grid](
        sums, state, lanes, chunks, STEPS=arguments['STEPS'], **STATES, **OPTIONS
    )
    return sums[1]


def forward(x: PreActivations, out: Tensor, options: ScanOptions, state: Tensor | None = None) -> None:
    """Scan, see ``interface.py``."""
    if not out.numel():
        return
    from . import triton_kernels as kernels

    assert out.is_contiguous()
    x = kernels.PreActivations(*same_layout(*x))
    grid, arguments, chunked = _launch(out.shape, out.device, options, backward=False)
    with on(out.device):
        if state is not None:
            state = state.to(torch.float32).contiguous()
        if chunked:
            gate, hidden = (kernels.Map(data, x.strides) for data in (x.gate, x.hidden))
            state = _enter_chunks(grid, arguments, gate, hidden, state, backward=False)
        kernels.scan_forward[grid](x, out, state, CHUNKED=chunked, **arguments)


def backward(grad: Tensor, x: PreActivations, h: Tensor, out: PreActivations, options: ScanOptions) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    if not h.numel():
        return
    from . import triton_kernels as kernels

    x, out = kernels.PreActivations(*same_layout(*x)), kernels.PreActivations(*out, Strides.of(out.gate))
    assert out.strides == Strides.of(out.hidden)
    grad, h, dense = same_layout(grad.contiguous(), h.contiguous())
    grid, arguments, chunked = _launch(h.shape, h.device, options, backward=True)
    state = None
    with on(h.device):
        if chunked:
            gate, value = kernels.Map(x.gate, x.strides), kernels.Map(grad, dense)
            state = _enter_chunks(grid, arguments, gate, value, None, backward=True)
        kernels.scan_backward[grid](grad, x, h, out, state, CHUNKED=chunked, **arguments)
