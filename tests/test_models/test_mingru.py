"""The token mixer, against one minGRU a path written out here."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmvisiongru.models.layers.mingru import MinGRU2D
from mmvisiongru.ops.scan_paths import PATHS as KNOWN_PATHS

PATHS = tuple(KNOWN_PATHS)


def reading_order(path, H, W):  # noqa: N803
    """Token of the row-major map that is read at each step."""
    order = [(h, w) for h in range(H) for w in range(W)]
    if path.startswith('column'):
        order.sort(key=lambda token: token[1])
    if path.endswith('reverse'):
        order.reverse()
    return [h * W + w for h, w in order]


def mixer_by_definition(mixer, x, paths, candidate):
    """y = sum over paths p of Wout_p minGRU(Win_p u read along p), u = dwconv(x)."""
    B, H, W, C = x.shape
    u = x.permute(0, 3, 1, 2)
    if 'dwconv.weight' in mixer.state_dict():
        kernel = mixer.dwconv.weight
        u = F.conv2d(u, kernel, mixer.dwconv.bias, padding=kernel.size(-1) // 2, groups=C)
    tokens = u.flatten(2).transpose(1, 2)
    D = mixer.out_proj.weight.size(1) // len(paths)
    y = torch.zeros_like(tokens)
    for p, path in enumerate(paths):
        w_hidden, w_gate = mixer.in_proj.weight[2 * D * p : 2 * D * (p + 1)].split(D)
        w_out = mixer.out_proj.weight[:, D * p : D * (p + 1)]
        h, outs, token = x.new_zeros(B, D), {}, tokens.unbind(1)
        for t in reading_order(path, H, W):
            z, c = torch.sigmoid(token[t] @ w_gate.T), token[t] @ w_hidden.T
            if candidate == 'g':
                c = torch.where(c >= 0, c + 0.5, torch.sigmoid(c))
            h = (1 - z) * h + z * c
            outs[t] = h @ w_out.T
        y = y + torch.stack([outs[t] for t in range(H * W)], 1)
    return y.view(B, H, W, C)


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize('kernel_size', [3, 5, None])
@pytest.mark.parametrize('paths', [('row',), PATHS[:2], PATHS, ('column', 'row')], ids=','.join)
def test_is_the_sum_of_its_paths(paths, kernel_size, candidate):
    torch.manual_seed(0)
    mixer = MinGRU2D(6, paths, kernel_size, expand_ratio=2, candidate=candidate).double()
    for H, W in ((4, 5), (1, 6), (5, 1), (1, 1)):
        x = torch.randn(2, H, W, 6, dtype=torch.float64, requires_grad=True)
        cotangent = torch.randn(2, H, W, 6, dtype=torch.float64)
        wanted = (x, *mixer.parameters())
        got, ref = (
            (y, *torch.autograd.grad(y, wanted, cotangent))
            for y in (mixer(x), mixer_by_definition(mixer, x, paths, candidate))
        )
        for a, b in zip(got, ref, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('paths', [('row',), PATHS[:2], PATHS], ids=len)
@pytest.mark.parametrize('expand_ratio', [1, 2, 3])
def test_shapes_of_the_fused_projections(paths, expand_ratio):
    dim, inner, number = 8, 8 * expand_ratio, len(paths)
    mixer = MinGRU2D(dim, paths, 3, expand_ratio)
    assert {k: tuple(v.shape) for k, v in mixer.state_dict().items()} == {
        'dwconv.weight': (dim, 1, 3, 3),
        'dwconv.bias': (dim,),
        'in_proj.weight': (number * 2 * inner, dim),
        'out_proj.weight': (dim, number * inner),
    }
    assert set(MinGRU2D(dim, paths, None).state_dict()) == {'in_proj.weight', 'out_proj.weight'}


@pytest.mark.parametrize('paths', [('row',), PATHS], ids=len)
def test_initialised_as_separate_layers_would_be(paths):
    """PyTorch's default is uniform within 1 / sqrt(fan-in); of the output, the fan-in of one path."""
    torch.manual_seed(0)
    mixer = MinGRU2D(96, paths, 3, expand_ratio=2)
    for weight, fan_in in (
        (mixer.out_proj.weight, 192),
        (mixer.in_proj.weight, 96),
        (mixer.dwconv.weight, 9),
        (mixer.dwconv.bias, 9),
    ):
        bound = 1 / math.sqrt(fan_in)
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.95 * bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert abs(weight.mean().item()) < 0.1 * bound


def test_autocast_bf16():
    torch.manual_seed(0)
    mixer = MinGRU2D(16, PATHS)
    x, cotangent = torch.randn(2, 9, 7, 16), torch.randn(2, 9, 7, 16)
    wanted = list(mixer.parameters())
    ref = mixer(x)
    ref_grads = torch.autograd.grad(ref, wanted, cotangent)
    with torch.autocast('cpu', torch.bfloat16):
        got = mixer(x)
    assert got.dtype == torch.bfloat16
    grads = torch.autograd.grad(got, wanted, cotangent.bfloat16())
    for a, b in zip((got, *grads), (ref, *ref_grads), strict=True):
        # Some five roundings to 8 bits lie between input and result.
        assert (a.float() - b).square().mean().sqrt() <= 0.02 * b.square().mean().sqrt()
    assert all(g.dtype == torch.float32 for g in grads)
