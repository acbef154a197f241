"""Bi-WKV by its definition, and what it takes to compare the backends with it."""

import torch

from mmvisiongru.ops.wkv import bi_wkv, runnable_backends

# The only tolerances of Bi-WKV: 'max' is max|got - ref| / max|ref|, 'rms' the same of root mean squares.
# 16-bit entries are dominated by the rounding of the results.
TOLERANCE = {
    torch.float64: ('max', 1e-12),
    torch.float32: ('max', 2e-6),
    torch.bfloat16: ('rms', 4e-3),
    torch.float16: ('rms', 1e-3),
}
NAMES = ('y', 'dw', 'du', 'dk', 'dv')
DEVICES = ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',)


def cases(*dtypes, distance='paper'):
    """(device, backend, dtype) of everything that runs here, a backend of later too."""
    return [
        (device, name, dtype)
        for device in DEVICES
        for dtype in dtypes
        for name in runnable_backends(device, dtype, distance)
    ]


def by_weights(w, u, k, v, distance='paper'):
    """Bi-WKV from the matrix of all weights, (T, T, C)."""
    T = k.size(1)
    t, i = torch.arange(T).view(-1, 1, 1), torch.arange(T).view(1, -1, 1)
    gap = (t - i).abs()
    diagonal = (gap == 0).to(w)
    if distance == 'paper':
        weights = torch.exp(-w * (gap - 1)) * (1 - diagonal) + torch.exp(u) * diagonal
    else:
        # The released kernel: plain distances, and two sums that start again with each of 32 pieces.
        first = t - t % -(-T // 32)
        inside = torch.exp(-w * (t - i)) * ((first <= i) & (i < t))
        inside = inside - torch.exp(w * (t - i)) * ((first < i) & (i <= t))
        weights = torch.exp(-w * gap) * (1 - diagonal) + torch.exp(u) * diagonal + torch.expm1(w) * inside
    x = torch.exp(k - k.detach().amax(1, keepdim=True))
    numerator, denominator = (torch.einsum('tic,bic->btc', weights, z) for z in (x * v, x))
    return numerator / denominator


def by_sums(w, u, k, v):
    """The same for any length, from cumulative sums over all tokens: float64 has the range for it."""
    t = torch.arange(k.size(1), dtype=torch.float64)[:, None]
    x = torch.exp(k - k.detach().amax(1, keepdim=True))

    def sides(z):
        before = (torch.exp(w * t) * z).cumsum(1)
        after = (torch.exp(-w * t) * z).flip(1).cumsum(1).flip(1)
        nothing = torch.zeros_like(z[:, :1])
        before, after = torch.cat((nothing, before[:, :-1]), 1), torch.cat((after[:, 1:], nothing), 1)
        return torch.exp(-w * (t - 1)) * before + torch.exp(w * (t + 1)) * after + torch.exp(u) * z

    return sides(x * v) / sides(x)


def inputs(B, T, C, dtype=torch.float32, decay=(-5.0, 3.0), deviation=1.0, seed=0):  # noqa: N803
    """w, u, k, v and the gradient of y; w and u stay in at least float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    w, u = torch.linspace(*decay, C, dtype=torch.float64) / T, normal(C) / T
    wide = torch.promote_types(dtype, torch.float32)
    k, v, grad = deviation * normal(B, T, C), normal(B, T, C), normal(B, T, C)
    return [x.to(wide) for x in (w, u)] + [x.to(dtype) for x in (k, v, grad)]


def run(operator, w, u, k, v, grad):
    """y and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in (w, u, k, v)]
    y = operator(*leaves)
    return dict(zip(NAMES, (y.detach(), *torch.autograd.grad(y, leaves, grad)), strict=True))


def run_backend(backend, tensors, device='cpu', **options):
    return run(lambda *x: bi_wkv(*x, backend=backend, **options), *(x.to(device) for x in tensors))


def expected(tensors, operator=by_weights, **options):
    return run(lambda *x: operator(*x, **options), *(x.double() for x in tensors))


def error(got, ref, measure):
    got, ref = got.double().cpu(), ref.double()
    # With one token nothing depends on w, u and k.
    scale = ref.abs() if ref.abs().max() > 1e-12 else torch.ones(1)
    if measure == 'max':
        return ((got - ref).abs().max() / scale.max()).item()
    return ((got - ref).square().mean() / scale.square().mean()).sqrt().item()


def assert_within(got, ref, dtype):
    """Every tensor of ``got`` is finite, of the right dtype and shape, and within the table of ``ref``."""
    measure, limit = TOLERANCE[dtype]
    assert got.keys() == ref.keys()
    for name, x in got.items():
        assert x.dtype == (torch.promote_types(dtype, torch.float32) if name in ('dw', 'du') else dtype), name
        assert x.shape == ref[name].shape, name
        assert x.isfinite().all(), f'{name} is not finite'
        found = error(x, ref[name], measure)
        assert found <= limit, f'{name}: {measure} error {found:.2e} > {limit:.0e}'
