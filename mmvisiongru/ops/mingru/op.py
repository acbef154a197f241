"""The minGRU scan: validation, and registration with the framework.

Two public functions share the backends. ``mingru_scan`` scans a sequence with separate pre-activations.
``mingru_scan_2d``, which the mixer calls, scans a projected map along several paths at once: backends address
the paths inside one tensor, so nothing is flipped, split or concatenated.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..autograd import with_gradient
from ..backends import Backends, check_choice, check_sequences, unit_stride
from ..scan_paths import check_paths
from .interface import PreActivations, ScanOptions


def _example(backend: str, device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.arange(1, 5 * 7 * 80 + 1, dtype=torch.float32, device=device)
    projected = values.square().sin().view(1, 5, 7, 80)
    h = _scan_2d_op(projected, 'row,column_reverse', 'g', backend)
    return h, _scan_2d_backward_op(h.cos(), projected, h, 'row,column_reverse', 'g', backend)


MODULES = {'cpu': 'cpu_scan', 'triton': 'triton_scan', 'torch': 'torch_scan', 'reference': 'reference'}
BACKENDS = Backends('scan', __package__, MODULES, _example)
CANDIDATES = ('g', 'linear')
# Per element of the output, forward and backward: keep h + z c is two multiply-adds, backward twice as much.
FLOPS = 4, 8


def runnable_backends(device='cpu', dtype: torch.dtype = torch.float32) -> list[str]:
    """Names of the scan's backends that can run on ``device``, in the order in which 'auto' prefers them.

    Examples:
        >>> import torch
        >>> from mmvisiongru.ops import runnable_backends
        >>> runnable_backends('cpu', torch.float64)[-2:]
        ['torch', 'reference']
    """
    return BACKENDS.runnable(device, dtype)


def _row_map(x: Tensor) -> Tensor:
    """View a sequence (B, L, D) as a map (B, 1, L, 1, D)."""
    return unit_stride(x)[:, None, :, None]


@torch.library.custom_op('mmvisiongru::mingru_scan', mutates_args=())
def _scan_op(gate: Tensor, hidden: Tensor, reverse: bool, candidate: str, backend: str) -> Tensor:
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    options = ScanOptions.of('row_reverse' if reverse else 'row', candidate)
    x = PreActivations(_row_map(gate), _row_map(hidden))
    BACKENDS.resolve(backend, gate).forward(x, _row_map(out), options)
    return out


@torch.library.custom_op('mmvisiongru::mingru_scan_backward', mutates_args=())
def _scan_backward_op(
    grad: Tensor, gate: Tensor, hidden: Tensor, h: Tensor, reverse: bool, candidate: str, backend: str
) -> tuple[Tensor, Tensor]:
    grads = tuple(torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
    grad, gate, hidden, h, *out = map(_row_map, (grad, gate, hidden, h, *grads))
    options = ScanOptions.of('row_reverse' if reverse else 'row', candidate)
    x = PreActivations(gate, hidden)
    BACKENDS.resolve(backend, gate).backward(grad, x, h, PreActivations(*out), options)
    return grads


@torch.library.custom_op('mmvisiongru::mingru_scan_2d', mutates_args=())
def _scan_2d_op(
    projected: Tensor, paths: str, candidate: str, backend: str, state: Tensor | None = None
) -> Tensor:
    x = _split(projected, paths)
    B, H, W, P, D = x.gate.shape
    out = projected.new_empty((B, H, W, P * D))
    options = ScanOptions.of(paths, candidate)
    BACKENDS.resolve(backend, projected).forward(x, out.view(x.gate.shape), options, state)
    return out


@torch.library.custom_op('mmvisiongru::mingru_scan_2d_backward', mutates_args=())
def _scan_2d_backward_op(
    grad: Tensor, projected: Tensor, h: Tensor, paths: str, candidate: str, backend: str
) -> Tensor:
    x = _split(projected, paths)
    out = projected.new_empty(projected.shape)
    grad, h = (t.contiguous().view(x.gate.shape) for t in (grad, h))
    options = ScanOptions.of(paths, candidate)
    BACKENDS.resolve(backend, projected).backward(grad, x, h, _split(out, paths), options)
    return out


def _split(projected: Tensor, paths: str) -> PreActivations:
    """View (B, H, W, P 2D), per path hidden and then gate, as two maps (B, H, W, P, D)."""
    number = paths.count(',') + 1
    B, H, W, C = projected.shape
    hidden, gate = projected.contiguous().view(B, H, W, number, 2, C // (2 * number)).unbind(4)
    return PreActivations(gate, hidden)


@_scan_op.register_fake
def _(gate, hidden, reverse, candidate, backend):
    return gate.new_empty(gate.shape)


@_scan_2d_op.register_fake
def _(projected, paths, candidate, backend, state=None):
    return projected.new_empty((*projected.shape[:3], projected.size(3) // 2))


_scan = with_gradient(
    'mingru_scan', _scan_op, _scan_backward_op, tensors=2, saves_output=True, dim=0, flops=FLOPS
)
_scan_2d = with_gradient(
    'mingru_scan_2d', _scan_2d_op, _scan_2d_backward_op, tensors=1, saves_output=True, dim=0, flops=FLOPS
)


def mingru_scan(
    gate: Tensor, hidden: Tensor, *, reverse: bool = False, candidate: str = 'g', backend: str = 'auto'
) -> Tensor:
    r"""Scan a sequence with minGRU (arXiv:2410.01201, appendix B.3.1)::

        h_t = (1 - z_t) h_{t-1} + z_t c_t,   z_t = sigmoid(gate_t),   c_t = g(hidden_t),   h_0 = 0.

    Args:
        gate, hidden (Tensor): Pre-activations, (B, L, D), same dtype and device; any strides.
        reverse (bool): Read the tokens from the last to the first; h_t stays at position t.
        candidate (str): 'g': g(x) = x + 0.5 for x >= 0, sigmoid(x) otherwise (the released model);
            'linear': c_t = hidden_t (arXiv:2412.18178, eq. 8).
        backend (str): 'auto' takes the first of :func:`runnable_backends`.

    Returns:
        Tensor: h, (B, L, D), in gate.dtype; the state is accumulated in at least float32.

    Raises:
        ValueError: Shapes, dtypes or devices differ, or an option is unknown.
        RuntimeError: The named backend cannot run here; the message says why.

    Examples:
        Pre-activations of 0 keep half of the state and take half of the candidate, g(0) = 1/2:

        >>> import torch
        >>> from mmvisiongru.ops import mingru_scan
        >>> gate = hidden = torch.zeros(1, 3, 1)
        >>> mingru_scan(gate, hidden).flatten()
        tensor([0.2500, 0.3750, 0.4375])
    """
    check_sequences(gate, hidden, 'gate and hidden')
    check_choice('candidate', candidate, CANDIDATES)
    BACKENDS.check(backend)
    return _scan(gate, hidden, bool(reverse), candidate, backend)


def mingru_scan_2d(
    projected: Tensor,
    *,
    paths: Sequence[str] = ('row', 'row_reverse'),
    candidate: str = 'g',
    backend: str = 'auto',
    state: Tensor | None = None,
) -> Tensor:
    """Scan a projected map along several paths at once (arXiv:2412.18178, Algorithm 1).

    Args:
        projected (Tensor): (B, H, W, P * 2D); for each of the P paths D channels of hidden, then D of gate.
        paths (Sequence[str]): Reading order of each path: 'row' is the row-major raster order,
            'column' the column-major one, ``'*_reverse'`` the same order from the end.
        candidate, backend: As in :func:`mingru_scan`.
        state (Tensor, optional): h before the first token of each path, (B, P, D), to continue an earlier
            tile of the map; zero by default. Inference only: it has no gradient.

    Returns:
        Tensor: (B, H, W, P * D), the state of each path at each token, in projected.dtype.

    Raises:
        ValueError: The channels are not P * 2 equal parts, the state does not fit, or an option is unknown.
        RuntimeError: The named backend cannot run here; the message says why.

    Examples:
        Two paths over a map of 4 x 6 tokens, each with 8 channels of hidden and 8 of gate:

        >>> import torch
        >>> from mmvisiongru.ops import mingru_scan_2d
        >>> projected = torch.randn(1, 4, 6, 2 * (8 + 8))
        >>> mingru_scan_2d(projected, paths=('row', 'column_reverse')).shape
        torch.Size([1, 4, 6, 16])
    """
    check_paths(paths)
    if projected.dim() != 4 or projected.size(3) % (2 * len(paths)):
        shape = tuple(projected.shape)
        raise ValueError(f'projected must be (B, H, W, P * 2D) with P = {len(paths)} paths, got {shape}')
    if not projected.is_floating_point():
        raise ValueError(f'projected must be floating-point, got {projected.dtype}')
    check_choice('candidate', candidate, CANDIDATES)
    BACKENDS.check(backend)
    expected = (projected.size(0), len(paths), projected.size(3) // (2 * len(paths)))
    if state is not None and (tuple(state.shape), state.device) != (expected, projected.device):
        given = f'{tuple(state.shape)} on {state.device}'
        raise ValueError(f'state must be (B, P, D) = {expected} on {projected.device}, got {given}')
    if state is not None and torch.is_grad_enabled() and (projected.requires_grad or state.requires_grad):
        raise ValueError('a scan that starts from a state has no gradient; call it under torch.no_grad()')
    return _scan_2d(projected, ','.join(paths), candidate, backend, state)
