"""The backbone: its numbers against a second implementation here, and the maps that heads get of it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.utils import LayerNorm2d
from torch import nn

from mmvisiongru.models import VisionGRU, visiongru
from mmvisiongru.ops.scan_paths import PATHS
from tests.harness.backbones import image, small
from tests.harness.scans import composed_2d

OPTIONS_OF_THE_SCAN = dict(scan_paths='paths', candidate='candidate')
THIN_SIZES = [(1, 1), (1, 37), (41, 1), (2, 3), (5, 4)]


def second_implementation(p, x, depths, paths=('row', 'row_reverse'), candidate='g'):
    """The network of the design in (B, C, H, W), from a dict ``p`` of parameters."""

    def norm(x, name, eps):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
        return x * p[f'{name}.weight'][:, None, None] + p[f'{name}.bias'][:, None, None]

    def strided_conv(x, name):
        return F.conv2d(x, p[f'{name}.weight'], p[f'{name}.bias'], stride=2, padding=1)

    def gelu(x):
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))

    def mixer(x, name):
        if f'{name}.dwconv.weight' in p:
            kernel, bias = p[f'{name}.dwconv.weight'], p[f'{name}.dwconv.bias']
            x = F.conv2d(x, kernel, bias, padding=kernel.size(-1) // 2, groups=x.size(1))
        projected = x.permute(0, 2, 3, 1) @ p[f'{name}.in_proj.weight'].T
        h = composed_2d(projected, paths, candidate)
        return (h @ p[f'{name}.out_proj.weight'].T).permute(0, 3, 1, 2)

    def mlp(x, name):
        for fc, after in (('fc1', gelu), ('fc2', lambda x: x)):
            weight, bias = p[f'{name}.{fc}.weight'], p[f'{name}.{fc}.bias']
            x = after(torch.einsum('bchw,dc->bdhw', x, weight) + bias[:, None, None])
        return x

    x = gelu(norm(strided_conv(x, 'stem.conv1'), 'stem.norm1', 1e-6))
    x = norm(strided_conv(x, 'stem.conv2'), 'stem.norm2', 1e-6)
    if 'pos_embed' in p:
        grid = p['pos_embed'].permute(0, 3, 1, 2)
        x = x + (F.interpolate(grid, x.shape[2:], mode='bicubic') if grid.shape[2:] != x.shape[2:] else grid)
    outs = []
    for i, depth in enumerate(depths):
        name = f'stages.{i}'
        if i:
            x = norm(strided_conv(x, f'{name}.downsample.conv'), f'{name}.downsample.norm', 1e-6)
        for j in range(depth):
            block = f'{name}.blocks.{j}'
            x = x + mixer(norm(x, f'{block}.norm1', 1e-5), f'{block}.mixer')
            x = x + mlp(norm(x, f'{block}.norm2', 1e-5), f'{block}.mlp')
        outs.append(x)
    return outs


def assert_same(model, size, rtol=1e-10, **options):
    """Features, and gradients of the input and of every parameter, within rtol of max|ref|."""
    params = dict(model.named_parameters())
    x = image(*size, dtype=torch.float64).requires_grad_()
    got, ref = model(x), second_implementation(params, x, (1, 1, 2, 1), **options)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in ref]
    names = [*(f'stage {i}' for i in range(4)), 'input', *params]
    got, ref = ((*outs, *torch.autograd.grad(outs, (x, *params.values()), cotangents)) for outs in (got, ref))
    for name, a, b in zip(names, got, ref, strict=True):
        assert a.shape == b.shape, name
        assert (a - b).abs().max() <= rtol * b.abs().max(), f'{name}, size {size}'


@pytest.mark.parametrize('size', [(95, 27), (32, 32), (33, 46), *THIN_SIZES], ids=str)
def test_matches_a_second_implementation(size):
    assert_same(small().double(), size)


@pytest.mark.parametrize(
    'options',
    [
        dict(scan_paths=('row',)),
        dict(scan_paths=tuple(PATHS)),
        dict(scan_paths=('column_reverse', 'row')),
        dict(candidate='linear'),
        dict(candidate='linear', scan_paths=tuple(PATHS)),
        dict(dwconv_kernel_size=None),
        dict(dwconv_kernel_size=0),
        dict(dwconv_kernel_size=5),
        dict(expand_ratio=1),
        dict(mlp_ratio=2),
        dict(with_cp=True),
        dict(scan_backend='reference'),
        dict(scan_backend='torch'),
    ],
    ids=str,
)
def test_matches_with_options(options):
    scan = {name: options[key] for key, name in OPTIONS_OF_THE_SCAN.items() if key in options}
    for size in ((33, 46), (1, 37))[: 2 if scan else 1]:
        assert_same(small(**options).double(), size, **scan)


@pytest.mark.parametrize('size', [(32, 32), (64, 40), (95, 27), (1, 1)], ids=str)
def test_positional_embedding(size, monkeypatch):
    # A grid of 8 x 8 is that of a 32 x 32 image; other maps get it interpolated.
    assert visiongru.POS_EMBED_GRID == 224 // 4
    monkeypatch.setattr(visiongru, 'POS_EMBED_GRID', 8)
    model = small(pos_embed='absolute').double()
    assert model.pos_embed.shape == (1, 8, 8, 8)
    assert_same(model, size)


@pytest.mark.parametrize(
    ('out_indices', 'stages'),
    [((3,), (3,)), ([0, 2], (0, 2)), ((1, -1), (1, 3)), ((-4, -2), (0, 2)), ((3, 0), (0, 3))],
    ids=str,
)
def test_out_indices(out_indices, stages):
    given = copy.copy(out_indices)
    model = small(out_indices=out_indices)
    assert out_indices == given, "the caller's list was changed"
    every = small()
    every.load_state_dict(model.state_dict())
    x = image(33, 46)
    wanted, got = every(x), model(x)
    assert len(got) == len(stages)
    for out, i in zip(got, stages, strict=True):
        assert torch.equal(out, wanted[i])


# The second map of a 64 x 64 image is 8 x 8 x 8: norms of a wrong axis run without an error.
THREE_MAPS = dict(arch=dict(embed_dims=[6, 8, 12], depths=[1, 1, 1]), out_indices=(0, 1, 2))


def by_definition(norm, raw, axes):
    """Over ``axes`` of a map (B, C, H, W), with affine parameters by channel."""
    if isinstance(norm, nn.RMSNorm):
        return raw / (raw.square().mean(axes, keepdim=True) + 1e-5).sqrt() * norm.weight[:, None, None]
    out = (raw - raw.mean(axes, keepdim=True)) / (raw.var(axes, keepdim=True, correction=0) + norm.eps).sqrt()
    if norm.weight is None:
        return out
    return out * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize(
    ('cfg', 'axes'),
    [
        (dict(type='LN'), 1),
        (dict(type=nn.LayerNorm, eps=1e-3), 1),
        (dict(type=LayerNorm2d), 1),
        (dict(type=nn.RMSNorm), 1),
        (dict(type='BN'), (0, 2, 3)),
        (dict(type='BN', requires_grad=False), (0, 2, 3)),
        (dict(type='IN'), (2, 3)),
        (dict(type='IN', affine=True), (2, 3)),
        (dict(type='GN', num_groups=1), (1, 2, 3)),
    ],
    ids=str,
)
def test_norms_of_tokens_and_norms_of_maps(cfg, axes):
    model, plain = small(**THREE_MAPS, out_norm_cfg=cfg).train(), small(**THREE_MAPS)
    plain.load_state_dict(model.state_dict(), strict=False)
    for i, (got, raw) in enumerate(zip(model(image(64, 64)), plain(image(64, 64)), strict=True)):
        ref = by_definition(model.out_norms[str(i)], raw, axes)
        torch.testing.assert_close(got, ref, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('norm', [None, dict(type='LN'), dict(type='BN')], ids=str)
def test_contiguous_maps(norm):
    plain, contiguous = (small(out_norm_cfg=norm, out_contiguous=how) for how in (False, True))
    for a, b in zip(plain(image(33, 46)), contiguous(image(33, 46)), strict=True):
        assert a.is_contiguous(memory_format=torch.channels_last)
        assert b.is_contiguous()
        assert torch.equal(a, b)


@pytest.mark.parametrize('paths', [('row',), tuple(PATHS)], ids=len)
def test_initialised_as_pytorch_layers_are(paths):
    """Uniform within 1 / sqrt(fan-in); for the output of the mixer, the fan-in of one path."""
    torch.manual_seed(0)
    model = VisionGRU(arch='pico', scan_paths=paths)
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel() // (len(paths) if name.endswith('out_proj') else 1)
            bound = 1 / math.sqrt(fan_in)
            assert 0.9 * bound < module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
