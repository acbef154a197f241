"""Triton backend: one fused kernel a pass over all paths, for NVIDIA GPUs; see ``triton_kernels.py``.

A pass that is one launch moves 6 bytes per inner element in 16-bit types, 12 backward; in chunks, 10 and 16.
"""

import torch
from torch import Tensor

from .. import triton_launch
from ..triton_launch import OPTIONS, STATES, alike, on, strides, unsupported
from .passes import Gates, Mode

__all__ = ['backward', 'forward', 'unsupported']


def _enter_chunks(gate, value, state, layout, value_layout, grid, arguments, backward=False) -> Tensor:
    """State before each chunk, (chunks, lanes); ``value`` is hidden, or backward the gradient of h."""
    from .. import triton_affine
    from . import triton_kernels

    chunks, lanes = arguments['chunks'], arguments['lanes']
    sums = torch.empty(2, chunks, lanes, dtype=torch.float32, device=gate.device)
    triton_kernels.chunk_sums[grid](gate, value, sums, *layout, *value_layout, BACKWARD=backward, **arguments)
    grid = (-(-lanes // STATES['LANES']),)
    triton_affine.chunk_states[grid](
        sums, state, lanes, chunks, STEPS=arguments['STEPS'], **STATES, **OPTIONS
    )
    return sums[1]


def _launch(x: Gates, mode: Mode, backward: bool):
    processors = triton_launch.processors(x.gate.device)
    grid, arguments = triton_launch.launch(x.gate.shape, mode.paths, backward, processors)
    return grid, dict(arguments, LINEAR=mode.candidate == 'linear')


def forward(x: Gates, out: Tensor, mode: Mode, state: Tensor | None = None) -> None:
    """Scan, see ``passes.py``."""
    if not out.numel():
        return
    from . import triton_kernels

    assert out.is_contiguous()
    gate, hidden, *layout = alike(*x)
    grid, arguments = _launch(x, mode, False)
    chunked = arguments['chunks'] > 1
    with on(gate.device):
        if state is not None:
            state = state.to(torch.float32).contiguous()
        if chunked:
            state = _enter_chunks(gate, hidden, state, layout, layout, grid, arguments)
        triton_kernels.scan_forward[grid](gate, hidden, out, state, *layout, CHUNKED=chunked, **arguments)


def backward(grad: Tensor, x: Gates, h: Tensor, out: Gates, mode: Mode) -> None:
    """Write the gradients of :func:`forward`, see ``passes.py``."""
    if not h.numel():
        return
    from . import triton_kernels

    gate, hidden, *layout = alike(*x)
    grad, h, *dense = alike(grad.contiguous(), h.contiguous())
    assert strides(out.gate) == strides(out.hidden)
    grid, arguments = _launch(x, mode, True)
    chunked, state = arguments['chunks'] > 1, None
    with on(gate.device):
        if chunked:
            state = _enter_chunks(gate, grad, None, layout, dense, grid, arguments, backward=True)
        triton_kernels.scan_backward[grid](
            *(grad, gate, hidden, h, *out, state),
            *(*layout, *strides(out.gate)),
            CHUNKED=chunked,
            **arguments,
        )
