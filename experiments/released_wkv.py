"""Errors of the released CUDA kernel of Vision-RWKV against its equation and its own derivative.

    python experiments/released_wkv.py

The kernel cuts the tokens into 32 pieces and mixes the distances |t - i| and |t - i| - 1 in its sums, so its
y is not that of arXiv:2403.02308, eq. 5. Its gradients of k and v divide the weights of eq. 5 by the sums of
its forward pass. They are not the derivative of its y, but about e^(decay / tokens) times it. Everything is
computed in float64 from the matrix of all weights; no GPU is needed.
"""

import argparse

import torch
from torch import Tensor

from mmvisiongru.ops import bi_wkv

BATCH, CHANNELS = 2, 4


def paper_weights(w: Tensor, u: Tensor, tokens: int) -> Tensor:
    """Eq. 5, (T, T, C): e^(-w (|t - i| - 1)), and e^u on the diagonal."""
    t = torch.arange(tokens)
    gap = (t[:, None] - t).abs()[..., None]
    return torch.where(gap == 0, u.exp(), torch.exp(-w * (gap - 1)))


def kernel_weights(w: Tensor, u: Tensor, tokens: int) -> Tensor:
    """Weights of the kernel's forward pass, (T, T, C): without the -1, plus two sums over the piece of t."""
    t = torch.arange(tokens)
    after = (t[:, None] - t)[..., None]
    begin = (t - t % -(-tokens // 32)).view(-1, 1, 1)
    i = t.view(1, -1, 1)
    plain = torch.where(after == 0, u.exp(), torch.exp(-w * after.abs()))
    falling = torch.exp(-w * after) * ((begin <= i) & (after > 0))
    rising = torch.exp(w * after) * ((begin < i) & (after >= 0))
    return plain + torch.expm1(w) * (falling - rising)


def kernel_gradients(y: Tensor, sums: Tensor, x: Tensor, v: Tensor, grad: Tensor, paper: Tensor):
    """dk and dv as the kernel computes them, from its y and denominators (B, T, C), with x = e^k."""
    r = grad / sums
    of_r, of_s = (torch.einsum('tic,btc->bic', paper, z) for z in (r, r * y))
    return x * (v * of_r - of_s), x * of_r


def measure(tokens: int, decay: float) -> dict:
    """Errors of y against eq. 5, and the kernel's dk and dv over the derivative."""
    generator = torch.Generator().manual_seed(0)
    k, v, grad = torch.randn(3, BATCH, tokens, CHANNELS, generator=generator, dtype=torch.float64)
    w = torch.full((CHANNELS,), decay / tokens, dtype=torch.float64)
    u = torch.full((CHANNELS,), -1.2 / tokens, dtype=torch.float64)
    leaves = [k.requires_grad_(), v.requires_grad_()]
    x = k.exp()
    sums = torch.einsum('tic,bic->btc', kernel_weights(w, u, tokens), x)
    y = torch.einsum('tic,bic->btc', kernel_weights(w, u, tokens), x * v) / sums
    exact = torch.autograd.grad(y, leaves, grad)
    with torch.no_grad():
        theirs = kernel_gradients(y, sums, x, v, grad, paper_weights(w, u, tokens))
        ours = bi_wkv(w, u, k, v, distance='released')
        paper = bi_wkv(w, u, k, v)
        # The factor that brings the derivative closest to the kernel's gradient.
        factors = [(a * b).sum().item() / (b * b).sum().item() for a, b in zip(theirs, exact, strict=True)]
    return dict(
        operator=((ours - y).abs().max() / y.abs().max()).item(),
        y=((paper - y).abs().max() / paper.abs().max()).item(),
        dk=factors[0],
        dv=factors[1],
        expected=float(torch.tensor(decay / tokens).exp()),
    )


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--sizes', nargs='+', type=int, default=[96, 224, 512], help='sides of the image, patches of 16'
    )
    parser.add_argument(
        '--decays', nargs='+', type=float, default=[-5.0, 3.0], help='values of spatial_decay'
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Print one line per size and decay."""
    args = parse_args(argv)
    heads = ('image', 'tokens', 'decay', 'y / eq. 5 - 1', 'dk / exact', 'dv / exact', 'e^(decay/T)')
    print('  '.join(heads), ' y / released - 1')
    for size in args.sizes:
        tokens = (-(-size // 16)) ** 2
        for decay in args.decays:
            found = measure(tokens, decay)
            print(
                f'{size:>5}  {tokens:>6}  {decay:>5g}  {found["y"]:>13.1e}  {found["dk"]:>10.4f}  '
                f'{found["dv"]:>10.4f}  {found["expected"]:>11.4f}  {found["operator"]:>16.1e}'
            )
    print("'y / released - 1' is the error of bi_wkv(distance='released') against the matrix of all weights.")


if __name__ == '__main__':
    main()
