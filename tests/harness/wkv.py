"""Bi-WKV by its definition, and what it takes to compare the backends with it."""

import torch

from mmvisiongru.ops.wkv import bi_wkv, runnable_backends
from tests.harness.scans import DEVICES

NAMES = ('y', 'dw', 'du', 'dk', 'dv')


def cases(*dtypes, distance='paper'):
    """(device, backend, dtype) of everything that runs here, a backend of later too."""
    pairs = [(device, dtype) for device in DEVICES for dtype in dtypes]
    return [(d, name, dtype) for d, dtype in pairs for name in runnable_backends(d, dtype, distance)]


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
