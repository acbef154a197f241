"""The Bi-WKV operator: validation, and registration with the framework."""

import torch
from torch import Tensor

from ..autograd import with_gradient
from ..backends import Backends, accumulation_dtype, check_choice, check_sequences, unit_stride
from .interface import Wkv


def _example(backend: str, device: torch.device) -> tuple[Tensor, ...]:
    # A multiple of 16, so that a model in float32 needs no other kernels, with masked channels.
    T, C, options = 40, 48, dict(dtype=torch.float32, device=device)
    w, u = torch.linspace(-5, 3, C, **options) / T, torch.linspace(-1, 1, C, **options)
    k, v = torch.arange(1, 2 * T * C + 1, **options).square().sin().view(2, 1, T, C)
    y = _op(w, u, k, v, 'paper', backend)
    return y, *_backward_op(y.cos(), w, u, k, v, 'paper', backend)


_EVERYWHERE = {'torch': 'torch_wkv', 'reference': 'reference'}
_FAST = {'cpu': 'cpu_wkv', 'triton': 'triton_wkv'}
# By distance.
BACKENDS = {
    'paper': Backends('bi_wkv', __package__, _FAST | _EVERYWHERE, _example),
    'released': Backends("bi_wkv(distance='released')", __package__, _EVERYWHERE, _example),
}
DISTANCES = tuple(BACKENDS)
# By dtype of the sums, how far apart the exponents -w T, 0 and u of a channel may be: all backends but the
# reference sum without a running maximum. A weight may be e^64 times another, and keys that are more than
# e^87 below the largest, which float32 drops, still count for less than 1e-9 of a sum.
LIMIT = {torch.float32: 64.0, torch.float64: 640.0}
# Per element of the output, forward: x v, and numerator and denominator of past, future and token are 7
# multiply-adds. Backward: these again, the same for the gradients, and the moments of both for the decay.
FLOPS = 14, 42


def runnable_backends(device='cpu', dtype: torch.dtype = torch.float32, distance: str = 'paper') -> list[str]:
    """Names of the backends that can run on ``device``, in the order in which 'auto' prefers them."""
    return BACKENDS[distance].runnable(device, dtype)


def _within_limit(name: str, distance: str, x: Wkv):
    """The module to run, and x; a channel beyond the limit raises, or becomes NaN on a GPU."""
    backend = BACKENDS[distance].resolve(name, x.k)
    if name == 'reference':
        return backend, x
    exponents = torch.stack((-x.w * x.k.size(1), x.u, torch.zeros_like(x.u)))
    limit, span = LIMIT[accumulation_dtype(x.k.dtype)], exponents.amax(0) - exponents.amin(0)
    if x.k.device.type != 'cpu':
        # Reading a value would stall the GPU.
        return backend, x._replace(w=x.w.where(span <= limit, torch.nan))
    if span.numel() and not span.max() <= limit:
        raise ValueError(
            f'bi_wkv needs exponents -w T, 0 and u within {limit:g} of each other for {x.k.dtype}, they span '
            f"{span.max():.4g}; backend='reference' has no limit"
        )
    return backend, x


@torch.library.custom_op('mmvisiongru::bi_wkv', mutates_args=())
def _op(w: Tensor, u: Tensor, k: Tensor, v: Tensor, distance: str, backend: str) -> Tensor:
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    module, x = _within_limit(backend, distance, Wkv(w, u, *map(unit_stride, (k, v))))
    # The backend chooses the dtypes of its sums.
    with torch.autocast(v.device.type, enabled=False):
        if v.numel():
            module.forward(x, y, distance)
    return y


@torch.library.custom_op('mmvisiongru::bi_wkv_backward', mutates_args=())
def _backward_op(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, distance: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = Wkv(*(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (w, u, k, v)))
    x = Wkv(w, u, *map(unit_stride, (k, v)))
    run = BACKENDS[distance].resolve(backend, k).backward
    with torch.autocast(v.device.type, enabled=False):
        if v.numel():
            run(unit_stride(grad), x, out, distance)
        else:
            # Without tokens, nothing depends on w and u.
            out.w.zero_(), out.u.zero_()
    return tuple(out)


@_op.register_fake
def _(w, u, k, v, distance, backend):
    return v.new_empty(v.shape)


_bi_wkv = with_gradient('bi_wkv', _op, _backward_op, tensors=4, saves_output=False, dim=-1, flops=FLOPS)


def bi_wkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, distance: str = 'paper', backend: str = 'auto'
) -> Tensor:
    r"""Average the values v with weights that decay with the distance of tokens (arXiv:2403.02308, eq. 5)::

        y_t = sum_i a_ti e^{k_i} v_i / sum_i a_ti e^{k_i},   a_ti = e^{-w (|t - i| - 1)},   a_tt = e^u.

    Args:
        w, u (Tensor): Decay and bonus of a token, (C), float32 or float64 whatever k and v are. The model
            divides both by the number of tokens T. A negative w lets weights grow with distance.
        k, v (Tensor): Keys and values, (B, T, C), same dtype and device; any strides.
        distance (str): 'paper' is the equation above. 'released' is the function of the released CUDA kernel,
            which cuts T into 32 pieces and mixes ``|t - i| - 1`` with ``|t - i|``; its gradients are exact,
            those of the kernel are not. Backends 'torch' and 'reference' have it.
        backend (str): 'auto' takes the first of :func:`mmvisiongru.ops.wkv.runnable_backends`.

    Returns:
        Tensor: y, (B, T, C), in v.dtype; sums are at least float32.

    Raises:
        ValueError: Shapes, dtypes or devices do not match, an option is unknown, or the exponents ``-w T``, 0
            and ``u`` of a channel are farther apart than the backend allows (64 in float32, 640 in float64;
            no limit in the reference). On a GPU, such a channel becomes NaN.
        RuntimeError: The named backend cannot run here; the message says why.

    Examples:
        Without decay, bonus and keys, y is the mean of all values; with decay, near ones count more:

        >>> import torch
        >>> from mmvisiongru.ops import bi_wkv
        >>> u, k, v = torch.zeros(1), torch.zeros(1, 3, 1), torch.tensor([[[0.0], [3.0], [6.0]]])
        >>> bi_wkv(torch.zeros(1), u, k, v).flatten()
        tensor([3., 3., 3.])
        >>> bi_wkv(torch.tensor([2.0]), u, k, v).flatten()
        tensor([1.7852, 3.0000, 4.2148])
    """
    check_sequences(k, v, 'k and v')
    for name, x in (('w', w), ('u', u)):
        if x.shape != k.shape[2:]:
            raise ValueError(f'{name} must be (C,) = {tuple(k.shape[2:])}, got {tuple(x.shape)}')
        if x.dtype not in (torch.float32, torch.float64) or x.device != k.device:
            raise ValueError(f'{name} must be float32 or float64 on {k.device}, got {x.dtype} on {x.device}')
    check_choice('distance', distance, DISTANCES)
    BACKENDS[distance].check(backend)
    return _bi_wkv(w, u, k, v, distance, backend)
