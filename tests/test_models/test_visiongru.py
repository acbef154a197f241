"""The backbone: its numbers against a second implementation here, and the contract of the field."""

import copy
import math
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvisiongru.models.backbones import visiongru
from mmvisiongru.models.backbones.visiongru import VisionGRU
from tests.harness import ROOT
from tests.harness.children import PATIENCE

# Widths that are no multiples of each other, so that a mixed-up one shows.
SMALL = dict(embed_dims=[8, 12, 20, 28], depths=[1, 1, 2, 1])
TWO_PATHS = ('row', 'row_reverse')
FOUR_PATHS = (*TWO_PATHS, 'column', 'column_reverse')
SIZES = [(224, 224), (256, 256), (256, 309), (255, 255), (112, 137), (95, 27), (32, 32), (4, 4)]
THIN_SIZES = [(1, 1), (1, 37), (41, 1), (2, 3), (5, 4)]


def small(seed=0, **options):
    """A small model whose every parameter matters: none is at the 0 or 1 where norms and biases start."""
    torch.manual_seed(seed)
    model = VisionGRU(**{'arch': SMALL, **options})
    for param in model.parameters():
        nn.init.normal_(param, mean=float(param.ndim == 1), std=0.3)
    return model


def image(*size, dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def map_sizes(H, W):  # noqa: N803
    """Four strided convolutions of ceil(n / 2), the first stage after two of them."""
    sizes = []
    for stage in range(4):
        for _ in range(2 if stage == 0 else 1):
            H, W = math.ceil(H / 2), math.ceil(W / 2)
        sizes.append((H, W))
    return sizes


# ---- numbers


def second_implementation(p, x, depths, paths=TWO_PATHS, candidate='g'):
    """The network of the design in (B, C, H, W), from a dict ``p`` of parameters."""

    def norm(x, name, eps):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
        return x * p[f'{name}.weight'][:, None, None] + p[f'{name}.bias'][:, None, None]

    def strided_conv(x, name):
        return F.conv2d(x, p[f'{name}.weight'], p[f'{name}.bias'], stride=2, padding=1)

    def gelu(x):
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))

    def mingru(gate, hidden):
        z, h, states = torch.sigmoid(gate), 0, []
        c = torch.where(hidden >= 0, hidden + 0.5, torch.sigmoid(hidden)) if candidate == 'g' else hidden
        for keep_t, add_t in zip((1 - z).unbind(1), (z * c).unbind(1), strict=True):
            h = keep_t * h + add_t
            states.append(h)
        return torch.stack(states, 1)

    def mixer(x, name):
        B, C, H, W = x.shape
        if f'{name}.dwconv.weight' in p:
            kernel = p[f'{name}.dwconv.weight']
            x = F.conv2d(x, kernel, p[f'{name}.dwconv.bias'], padding=kernel.size(-1) // 2, groups=C)
        w_in = p[f'{name}.in_proj.weight'].view(len(paths), 2, -1, C)
        w_out = p[f'{name}.out_proj.weight'].view(C, len(paths), -1)
        tokens, y = x.flatten(2).mT, 0
        for i, path in enumerate(paths):
            order = torch.arange(H * W).view(H, W)
            order = (order.T if path.startswith('column') else order).flatten()
            order = order.flip(0) if path.endswith('reverse') else order
            read = tokens[:, order]
            h = mingru(gate=read @ w_in[i, 1].T, hidden=read @ w_in[i, 0].T)
            y = y + (h @ w_out[:, i].T)[:, order.argsort()]
        return y.mT.view(B, C, H, W)

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
    got, ref = model(x), second_implementation(params, x, SMALL['depths'], **options)
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
        dict(scan_paths=FOUR_PATHS),
        dict(scan_paths=('column_reverse', 'row')),
        dict(candidate='linear'),
        dict(candidate='linear', scan_paths=FOUR_PATHS),
    ],
    ids=str,
)
def test_matches_with_options_of_the_scan(options):
    model = small(**options).double()
    for size in ((33, 46), (1, 37)):
        assert_same(
            model,
            size,
            paths=options.get('scan_paths', TWO_PATHS),
            candidate=options.get('candidate', 'g'),
        )


@pytest.mark.parametrize(
    'options',
    [
        dict(dwconv_kernel_size=None),
        dict(dwconv_kernel_size=0),
        dict(dwconv_kernel_size=5),
        dict(expand_ratio=1),
        dict(mlp_ratio=2),
        dict(with_cp=True),
        dict(scan_backend='reference'),
        dict(scan_backend='torch'),
        dict(out_norm_cfg=None, drop_path_rate=0.0, pos_embed=None, frozen_stages=-1),
    ],
    ids=str,
)
def test_matches_with_options_of_the_block(options):
    assert_same(small(**options).double(), (33, 46))


@pytest.mark.parametrize('size', [(32, 32), (64, 40), (95, 27), (1, 1)], ids=str)
def test_positional_embedding(size, monkeypatch):
    # A grid of 8 x 8 is that of a 32 x 32 image; other maps get it interpolated.
    monkeypatch.setattr(visiongru, 'POS_EMBED_GRID', 8)
    model = small(pos_embed='absolute').double()
    assert model.pos_embed.shape == (1, 8, 8, 8)
    assert_same(model, size)


def test_positional_embedding_tells_positions_apart():
    plain, embedded = small(), small(pos_embed='absolute')
    embedded.load_state_dict(plain.state_dict(), strict=False)
    nn.init.zeros_(embedded.pos_embed)
    x = image(64, 40)
    for a, b in zip(plain(x), embedded(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    nn.init.normal_(embedded.pos_embed)
    assert not torch.allclose(plain(x)[0], embedded(x)[0])


def test_float32_is_close_to_float64():
    model = small().eval()
    x = image(95, 27)
    ref = second_implementation(
        {k: v.double() for k, v in model.named_parameters()}, x.double(), SMALL['depths']
    )
    for got, y in zip(model(x), ref, strict=True):
        assert (got - y).abs().max() <= 1e-5 * y.abs().max()


@pytest.mark.parametrize('paths', [TWO_PATHS, FOUR_PATHS], ids=len)
def test_inference_on_a_large_image_equals_training(paths):
    # Without gradients a layer may take another way through a large map; it has to lead to the same place.
    model = small(scan_paths=paths).double().eval()
    x = image(397, 410, dtype=torch.float64, batch=1)
    with torch.no_grad():
        outs = model(x)
    for got, ref in zip(outs, model(x), strict=True):
        assert (got - ref).abs().max() <= 1e-10 * ref.abs().max()


def test_batch_members_do_not_mix():
    model, x = small(), image(33, 46, batch=3)
    together, alone = model(x), model(x[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-5)
    x[0] = float('nan')
    assert all(y[1:].isfinite().all() and y[0].isnan().any() for y in model(x))


def test_memory_layout_of_the_image_does_not_matter():
    model, x = small(), image(33, 46)
    for strided in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        for a, b in zip(model(x), model(strided), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- shapes


@pytest.mark.parametrize('size', [*SIZES, *THIN_SIZES], ids=str)
def test_sizes(size):
    with torch.no_grad():
        outs = small().eval()(image(*size, batch=1))
    assert isinstance(outs, tuple)
    for out, dim, map_size in zip(outs, SMALL['embed_dims'], map_sizes(*size), strict=True):
        assert out.shape == (1, dim, *map_size)
        assert out.isfinite().all()
        assert out.permute(0, 2, 3, 1).is_contiguous(), 'not stored channels-last'


@pytest.mark.parametrize('size', [(4, 4), (1, 1), (1, 9), (32, 32)], ids=str)
def test_trains_at_small_sizes(size):
    model = small(drop_path_rate=0.3).train()
    sum(out.square().sum() for out in model(image(*size))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('in_channels', [1, 4])
def test_in_channels(in_channels):
    model = VisionGRU(arch=SMALL, in_channels=in_channels)
    assert model.stem.conv1.weight.shape == (4, in_channels, 3, 3)
    assert model(torch.randn(1, in_channels, 32, 32))[0].shape == (1, 8, 8, 8)


@pytest.mark.parametrize(
    ('out_indices', 'stages'),
    [
        ((0, 1, 2, 3), (0, 1, 2, 3)),
        ((3,), (3,)),
        ((-1,), (3,)),
        ([0, 2], (0, 2)),
        ((1, -1), (1, 3)),
        ((-4, -2), (0, 2)),
        ((3, 0), (0, 3)),
    ],
    ids=str,
)
def test_out_indices(out_indices, stages):
    given = copy.copy(out_indices)
    model = small(out_indices=out_indices)
    assert out_indices == given, "the caller's list was changed"
    every = small()
    every.load_state_dict(model.state_dict())
    x = image(33, 46)
    wanted = every(x)
    got = model(x)
    assert len(got) == len(stages)
    for out, i in zip(got, stages, strict=True):
        assert torch.equal(out, wanted[i])


def test_number_of_stages_is_that_of_the_arch():
    model = VisionGRU(arch=dict(embed_dims=[8, 16], depths=[1, 2]), out_indices=(0, -1))
    assert [tuple(y.shape) for y in model(image(32, 32, batch=1))] == [(1, 8, 8, 8), (1, 16, 4, 4)]


def test_out_norm():
    model, plain = small(out_norm_cfg=dict(type='LN'), out_indices=(1, 3)), small(out_indices=(1, 3))
    plain.load_state_dict(model.state_dict(), strict=False)
    norms = [m for name, m in model.named_children() if 'norm' in name for m in m.values()]
    assert [tuple(m.weight.shape) for m in norms] == [(12,), (28,)]
    x = image(33, 46)
    for got, raw, norm in zip(model(x), plain(x), norms, strict=True):
        ref = F.layer_norm(raw.permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(got, ref.permute(0, 3, 1, 2))


# ---- parameters


def count(module):
    return sum(p.numel() for p in module.parameters())


def on_meta(build, cfg):
    with torch.device('meta'):
        return build(cfg)


@pytest.mark.parametrize(('arch', 'number'), [('tiny', 29_639_952), ('base', 86_074_352)])
def test_parameter_count_of_the_paper(arch, number):
    with torch.device('meta'):
        assert count(VisionGRU(arch=arch)) == number
    assert arch != 'tiny' or count(on_meta(lambda _: VisionGRU(), None)) == number


def test_pico_is_for_laptops():
    assert 1e6 < count(VisionGRU(arch='pico')) < 2e6


def counted_by_hand(embed_dims, depths, paths=2, kernel=3, expand=2, mlp=4, in_channels=3, grid=0):
    first = embed_dims[0]
    half = first // 2
    number = 9 * in_channels * half + half + 2 * half + 9 * half * first + first + 2 * first
    number += grid * grid * first
    for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
        inner = expand * dim
        if i:
            number += 9 * embed_dims[i - 1] * dim + dim + 2 * dim
        block = 2 * 2 * dim
        block += (kernel * kernel + 1) * dim if kernel else 0
        block += paths * (2 * inner * dim + inner * dim)
        block += mlp * dim * dim + mlp * dim + mlp * dim * dim + dim
        number += depth * block
    return number


@pytest.mark.parametrize(
    ('options', 'by_hand'),
    [
        ({}, {}),
        (dict(scan_paths=('row',)), dict(paths=1)),
        (dict(scan_paths=FOUR_PATHS), dict(paths=4)),
        (dict(dwconv_kernel_size=None), dict(kernel=None)),
        (dict(dwconv_kernel_size=7), dict(kernel=7)),
        (dict(expand_ratio=1), dict(expand=1)),
        (dict(mlp_ratio=3), dict(mlp=3)),
        (dict(in_channels=5), dict(in_channels=5)),
        (dict(candidate='linear'), {}),
        (dict(pos_embed='absolute'), dict(grid=56)),  # the map of a 224 x 224 image
    ],
    ids=str,
)
@pytest.mark.parametrize(
    'arch', [SMALL, dict(embed_dims=[6, 10], depths=[3, 1]), VisionGRU.arch_settings['tiny']], ids=str
)
def test_parameter_count_by_hand(arch, options, by_hand):
    with torch.device('meta'):
        model = VisionGRU(arch=arch, out_indices=(0,), **options)
    assert count(model) == counted_by_hand(**arch, **by_hand)


@pytest.mark.parametrize(('arch', 'width', 'number'), [('tiny', 576, 30_216_952), ('base', 832, 86_907_352)])
def test_parameter_count_of_the_classifier(arch, width, number):
    from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='mmvisiongru.VisionGRU', arch=arch, out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=width),
        _scope_='mmpretrain',
    )
    assert count(on_meta(MMPRETRAIN_MODELS.build, cfg)) == number


def test_parameter_count_of_upernet():
    from mmseg.registry import MODELS as MMSEG_MODELS

    norm_cfg = dict(type='BN')
    cfg = dict(
        type='EncoderDecoder',
        backbone=dict(type='mmvisiongru.VisionGRU'),
        decode_head=dict(
            type='UPerHead',
            in_channels=[72, 144, 288, 576],
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            channels=512,
            num_classes=150,
            norm_cfg=norm_cfg,
        ),
        auxiliary_head=dict(
            type='FCNHead',
            in_channels=288,
            in_index=2,
            channels=256,
            num_convs=1,
            concat_input=False,
            num_classes=150,
            norm_cfg=norm_cfg,
        ),
        _scope_='mmseg',
    )
    assert round(count(on_meta(MMSEG_MODELS.build, cfg)) / 1e6, 2) == 60.48


@pytest.mark.parametrize(('size', 'gmacs'), [(224, 4.88), (1248, 151.9)])
def test_multiply_adds_of_tiny(size, gmacs):
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        VisionGRU()(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.02)


def test_names_of_the_state():
    block = r'stages\.\d\.blocks\.\d+\.'
    known = [
        r'stem\.(conv|norm)[12]\.(weight|bias)',
        r'stages\.[1-3]\.downsample\.(conv|norm)\.(weight|bias)',
        block + r'norm[12]\.(weight|bias)',
        block + r'mixer\.dwconv\.(weight|bias)',
        block + r'mixer\.(in|out)_proj\.weight',
        block + r'mlp\.fc[12]\.(weight|bias)',
    ]
    with torch.device('meta'):
        keys = list(VisionGRU().state_dict())
    assert [k for k in keys if not any(re.fullmatch(pattern, k) for pattern in known)] == []
    assert len(keys) == 8 + 3 * 4 + 14 * (4 + 2 + 2 + 4)


def test_initialised_as_pytorch_layers_are():
    torch.manual_seed(0)
    model = VisionGRU(arch='pico')
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            if name.endswith('out_proj'):
                fan_in //= 2
            bound = 1 / math.sqrt(fan_in)
            assert 0.9 * bound < module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name


# ---- training


def grads_of(model, x, seed=0):
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    outs = model(x)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator) for y in outs]
    params = [p for p in model.parameters() if p.requires_grad]
    return outs, torch.autograd.grad(outs, (x, *params), cotangents)


@pytest.mark.parametrize(
    'options',
    [{}, dict(scan_paths=FOUR_PATHS, candidate='linear', pos_embed='absolute', out_norm_cfg=dict(type='LN'))],
    ids=['default', 'options'],
)
def test_every_parameter_receives_a_gradient(options):
    torch.manual_seed(0)
    model = VisionGRU(arch=SMALL, **options).train()
    outs = model(image(96, 96))
    torch.autograd.backward(outs, [torch.randn_like(y) for y in outs])
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert param.grad.abs().sum() > 0, name
    last = VisionGRU(arch=SMALL, out_indices=(3,)).train()
    last(image(96, 96))[0].square().sum().backward()
    assert [n for n, p in last.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize('pos_embed', [None, 'absolute'])
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen_stages, pos_embed):
    """0 freezes the stem, n the stem and the first n stages."""
    model = small(frozen_stages=frozen_stages, pos_embed=pos_embed, drop_path_rate=0.5)
    assert model.train() is model

    def frozen(name):
        if not name.startswith('stages.'):
            return frozen_stages >= 0
        return int(name.split('.')[1]) < frozen_stages

    for name, module in model.named_modules():
        if name.startswith(('stem', 'stages.')):
            assert module.training is not frozen(name), name
    outs = model(image(32, 32))
    if any(not frozen(name) for name, _ in model.named_parameters()):
        torch.autograd.backward(
            [y for y in outs if y.requires_grad], [torch.randn_like(y) for y in outs if y.requires_grad]
        )
    else:
        assert not any(y.requires_grad for y in outs)
    for name, param in model.named_parameters():
        assert param.requires_grad is not frozen(name), name
        assert (param.grad is None) is frozen(name), name
    assert not any(m.training for m in model.eval().modules())
    model.train()
    assert model.stem.training is (frozen_stages < 0)


@pytest.mark.parametrize('frozen_stages', [0, 2])
def test_gradients_of_the_rest_do_not_change_when_stages_are_frozen(frozen_stages):
    model, free = small(frozen_stages=frozen_stages), small()
    free.load_state_dict(model.state_dict())
    for m in (model, free):
        sum(y.square().sum() for y in m(image(33, 46))).backward()
    free = dict(free.named_parameters())
    for name, param in model.named_parameters():
        if param.requires_grad:
            torch.testing.assert_close(param.grad, free[name].grad)


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.3])
@pytest.mark.parametrize('depths', [[1, 1, 2, 1], [2, 1, 3, 2]])
def test_drop_path_schedule(depths, rate):
    model = VisionGRU(arch=dict(embed_dims=[8, 12, 20, 28], depths=depths), drop_path_rate=rate)
    total = sum(depths)
    rates = []
    for stage, depth in zip(model.stages, depths, strict=True):
        assert len(stage.blocks) == depth
        for block in stage.blocks:
            (found,) = {m.drop_prob for m in block.modules() if isinstance(m, DropPath)} or {0.0}
            rates.append(found)
    assert rates == pytest.approx([rate * k / (total - 1) for k in range(total)])


def test_drop_path_drops_each_branch_of_each_sample():
    torch.manual_seed(0)
    # Rates 0 and 0.5: the second block keeps neither, either or both of its branches.
    model = VisionGRU(arch=dict(embed_dims=[8, 12], depths=[1, 1]), drop_path_rate=0.5, out_indices=(0, 1))
    x = image(16, 16, batch=1).expand(64, -1, -1, -1)
    first, second = (y.detach().flatten(1) for y in model.train()(x))
    assert torch.allclose(first, first[:1], atol=1e-6)
    distinct = torch.cdist(second, second).lt(1e-3).int().unique(dim=0)
    assert len(distinct) == 4
    a, b = (y.flatten(1) for y in model.eval()(x))
    assert torch.allclose(a, a[:1], atol=1e-6)
    assert torch.allclose(b, b[:1], atol=1e-6)


def test_train_and_eval_return_the_module():
    model = small()
    assert isinstance(model, BaseModule)
    for frozen in (model, small(frozen_stages=1)):
        assert frozen.train() is frozen
        assert frozen.train(False) is frozen
        assert not frozen.training
        assert frozen.eval() is frozen


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
def test_with_cp(drop_path_rate, frozen_stages):
    options = dict(drop_path_rate=drop_path_rate, frozen_stages=frozen_stages)
    plain, recomputing = small(**options).train(), small(with_cp=True, **options).train()
    recomputing.load_state_dict(plain.state_dict())
    x = image(33, 46, batch=8)
    for got, ref in zip(grads_of(recomputing, x), grads_of(plain, x), strict=True):
        for a, b in zip(got, ref, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1])
def test_with_cp_recomputes_every_block_that_trains(frozen_stages):
    model = small(with_cp=True, frozen_stages=frozen_stages).train()
    calls = []
    for name, module in model.named_modules():
        if name.endswith('.mixer'):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    sum(y.sum() for y in model(image(32, 32)) if y.requires_grad).backward()
    # Once in the forward pass, and again in the backward pass unless nothing there needs a gradient.
    for name in {name for name, _ in model.named_modules() if name.endswith('.mixer')}:
        assert calls.count(name) == (1 if int(name.split('.')[1]) < frozen_stages else 2), name


def test_state_dict_round_trip(tmp_path):
    model = small(pos_embed='absolute', out_norm_cfg=dict(type='LN'))
    other = small(seed=1, pos_embed='absolute', out_norm_cfg=dict(type='LN'))
    x = image(33, 46)
    assert not torch.equal(model(x)[0], other(x)[0])
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    other.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True), strict=True)
    for a, b in zip(model(x), other(x), strict=True):
        assert torch.equal(a, b)


def test_two_models_side_by_side():
    settings = copy.deepcopy(VisionGRU.arch_settings)
    arch = copy.deepcopy(SMALL)
    first = small(arch=arch, out_indices=[0, 3])
    x = image(33, 46)
    before = first(x)
    second = VisionGRU(arch='pico', scan_paths=FOUR_PATHS, candidate='linear')
    assert [y.size(1) for y in second(x)] == settings['pico']['embed_dims']
    for a, b in zip(before, first(x), strict=True):
        assert torch.equal(a, b)
    assert arch == SMALL
    assert settings == VisionGRU.arch_settings
    assert list(first.embed_dims) == SMALL['embed_dims']


def test_autocast_bf16():
    model, x = small().train(), image(33, 46)
    ref = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        got = model(x)
        sum(y.float().square().mean() for y in got).backward()
    for a, b in zip(got, ref, strict=True):
        assert (a.float() - b).square().mean().sqrt() <= 0.05 * b.square().mean().sqrt()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_compile_fullgraph():
    torch._dynamo.reset()
    model = small(arch=dict(embed_dims=[8, 12], depths=[1, 1]), out_indices=(0, 1))
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x = image(33, 46)
    got, ref = grads_of(compiled, x), grads_of(model, x)
    for a, b in zip((*got[0], *got[1]), (*ref[0], *ref[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- layer-wise learning rate decay


def test_layer_depth_rises_through_the_network():
    model = VisionGRU(arch=SMALL, pos_embed='absolute', out_norm_cfg=dict(type='LN'))
    total = sum(SMALL['depths'])
    for prefix in ('', 'backbone.'):
        depths = {n: model.get_layer_depth(prefix + n, prefix) for n, _ in model.named_parameters()}
        assert {number for _, number in depths.values()} == {total + 2}
        order = [depths[n][0] for n in depths if n.startswith(('stem', 'stages'))]
        assert order == sorted(order)
        assert sorted(set(order)) == list(range(total + 1))
        assert depths['stem.conv1.weight'][0] == depths['pos_embed'][0] == 0
        assert depths['stages.2.downsample.conv.weight'] == depths['stages.2.blocks.0.norm1.weight']
        assert depths['stages.2.blocks.1.mlp.fc2.bias'][0] == 4
        assert {d for n, (d, _) in depths.items() if 'out_norm' in n} == {total + 1}
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (total + 1, total + 2)


def test_layer_decay_of_mmpretrain():
    from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
    from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

    model = MMPRETRAIN_MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmvisiongru.VisionGRU', arch=SMALL, out_indices=(3,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=28),
            _scope_='mmpretrain',
        )
    )
    constructor = LearningRateDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)), dict(layer_decay_rate=0.5)
    )
    groups = {g['param_name']: g['lr'] for g in constructor(model).optimizer.param_groups}
    assert groups.keys() == dict(model.named_parameters()).keys()
    block = 'backbone.stages.{}.blocks.{}.mixer.in_proj.weight'
    # Seven layers: the stem, five blocks and the head.
    blocks = [block.format(*place) for place in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))]
    names = ['backbone.stem.conv1.weight', *blocks, 'head.fc.weight']
    assert [groups[name] for name in names] == [0.5**k for k in range(6, -1, -1)]
    assert groups['backbone.stages.3.downsample.norm.bias'] == groups[block.format(3, 0)]


# ---- registry


def test_resolves_in_every_scope_without_custom_imports():
    code = """
import sys
from {library}.registry import MODELS
assert not any(m.startswith('mmvisiongru') for m in sys.modules)
model = MODELS.build(dict(type='mmvisiongru.VisionGRU', arch='pico', out_indices=(-1,)))
print(type(model).__module__, type(model).__name__, model.embed_dims[0])
"""
    libraries = ('mmengine', 'mmseg', 'mmpretrain')
    running = [
        subprocess.Popen(
            [sys.executable, '-c', code.format(library=library)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for library in libraries
    ]
    for library, process in zip(libraries, running, strict=True):
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f'{library}: {err}'
        assert out.splitlines()[-1] == 'mmvisiongru.models.backbones.visiongru VisionGRU 24', library


# ---- bad arguments


def stages(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1)):
    return dict(arch=dict(embed_dims=list(embed_dims), depths=list(depths)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "arch.*'huge'"),
        (dict(arch=dict(embed_dims=[8, 16])), "arch.*'depths'.*got.*'embed_dims'"),
        (dict(arch=dict(**SMALL, heads=[1, 1, 1, 1])), "arch.*'heads'"),
        (stages(embed_dims=[8, 16, 32]), 'arch.*3 embed_dims.*4 depths'),
        (stages([], []), 'arch.*0'),
        (stages([9, 16, 32, 64]), 'embed_dims.*even.*9'),
        (stages([8, -16, 32, 64]), 'embed_dims.*positive.*-16'),
        (stages(depths=[1, 0, 1, 1]), r'depths.*positive.*\(1, 0, 1, 1\)'),
        (stages(depths=[1, 1, -2, 1]), 'depths.*positive.*-2'),
        (dict(in_channels=0), 'in_channels.*0'),
        (dict(scan_paths=('row', 'diagonal')), "scan_paths.*'diagonal'"),
        (dict(scan_paths=()), r'scan_paths.*\(\)'),
        (dict(scan_paths='row'), "scan_paths.*list.*got 'row'"),
        (dict(dwconv_kernel_size=4), 'dwconv_kernel_size.*4'),
        (dict(dwconv_kernel_size=-3), 'dwconv_kernel_size.*-3'),
        (dict(expand_ratio=0), 'expand_ratio.*0'),
        (dict(mlp_ratio=-1), 'mlp_ratio.*-1'),
        (dict(candidate='tanh'), "candidate.*'tanh'"),
        (dict(pos_embed='sine'), "pos_embed.*'sine'"),
        (dict(drop_path_rate=1.5), r'drop_path_rate.*1\.5'),
        (dict(drop_path_rate=1.0), r'drop_path_rate.*1\.0'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate.*-0\.1'),
        (dict(out_indices=(4,)), r'out_indices.*\(4,\)'),
        (dict(out_indices=(0, -5)), r'out_indices.*\(0, -5\)'),
        (dict(out_indices=()), r'out_indices.*\(\)'),
        (dict(out_indices=4), 'out_indices.*got 4'),
        (dict(frozen_stages=5), 'frozen_stages.*got 5'),
        (dict(frozen_stages=-2), 'frozen_stages.*got -2'),
        (dict(scan_backend='warp'), "scan_backend.*'warp'"),
    ],
    ids=str,
)
def test_bad_argument(options, message):
    with pytest.raises(ValueError, match=message) as info:
        VisionGRU(**{'arch': SMALL, **options})
    assert '\n' not in str(info.value)


def test_misspelt_argument():
    with pytest.raises(TypeError, match='drop_path'):
        VisionGRU(arch=SMALL, drop_path=0.1)


def test_error_comes_through_the_registry():
    with pytest.raises(ValueError, match='huge'):
        MODELS.build(dict(type='mmvisiongru.VisionGRU', arch='huge'))
    with pytest.raises(TypeError, match='drop_path'):
        MODELS.build(dict(type='mmvisiongru.VisionGRU', drop_path=0.1))
