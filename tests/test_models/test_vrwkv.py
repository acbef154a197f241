"""VRWKV: values of the original, and the contract of the field."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvisiongru.models import VRWKV
from mmvisiongru.models.layers.rwkv_mix import q_shift
from tests.harness.vrwkv import (
    CASES,
    FIXTURE,
    LIMITS,
    assert_original,
    count,
    image,
    original_arguments,
    released_names,
    released_state,
    results,
)

PLAIN = [pair for pair in CASES if pair[0] != 'adapter']
RELEASED = [pair for pair in PLAIN if '{}/case{}/released/logits'.format(*pair) in FIXTURE.files]
SMALL = dict(embed_dims=18, depth=3, post_norm=True, layer_scale=0.5)
SIZES = [(64, 64), (33, 46), (16, 80), (16, 16), (1, 1), (1, 37), (41, 1), (17, 16)]


def small(seed=0, **options):
    """A small model whose every parameter matters: none is at the 0 or 1 where norms and biases start."""
    torch.manual_seed(seed)
    model = VRWKV(**{'arch': SMALL, **options})
    for param in model.parameters():
        nn.init.normal_(param, mean=float(param.ndim == 1), std=0.3)
    return model


# ---- values of the original


def original(name, dtype, **options):
    """The backbone and head of the fixture; loading is strict, so that the names are checked as well."""
    settings = original_arguments(name)
    arch = dict(
        embed_dims=16,
        depth=3,
        post_norm=settings.get('post_norm', False),
        key_norm=settings.get('key_norm', False),
        layer_scale=settings.get('init_values'),
    )
    backbone = VRWKV(arch, img_size=32, patch_size=4, out_indices=(0, 1, 2), **options)
    head = nn.ModuleDict(dict(fc=nn.Linear(16, 7)))
    model = nn.ModuleDict(dict(backbone=backbone, head=head))
    model.load_state_dict(released_state(name))
    return model.to(dtype)


def results_with_logits(model, name, case, dtype):
    found = results(model, name, case, dtype)
    last = found['stage3'].mean((2, 3))
    return dict(found, logits=model['head']['fc'](last))


@pytest.mark.parametrize('dtype', LIMITS, ids=str)
@pytest.mark.parametrize(('name', 'case'), PLAIN)
def test_values_of_the_original(name, case, dtype):
    found = results_with_logits(original(name, dtype), name, case, dtype)
    assert assert_original(found, name, case, LIMITS[dtype]) == 6


@pytest.mark.parametrize(('name', 'case'), RELEASED)
def test_values_of_the_released_kernel(name, case):
    model = original(name, torch.float64, distance='released')
    found = results_with_logits(model, name, case, torch.float64)
    # The kernel adds 1e-6 to its denominator, which moves maps and logits by up to 5e-7.
    assert assert_original(found, name, case, 1e-6, released=True) == 5
    assert assert_original(dict(grad_norms=found['grad_norms']), name, case, 1e-9, released=True) == 1
    with pytest.raises(AssertionError, match='stage1'):
        assert_original(
            results(original(name, torch.float64), name, case, torch.float64), name, case, 1e-6, True
        )


def test_names_and_shapes_of_the_released_classifier():
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=VRWKV(), head=nn.ModuleDict(dict(fc=nn.Linear(192, 1000)))))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == released_names('tiny')


# ---- parameters and FLOPs


@pytest.mark.parametrize(
    ('arch', 'options', 'number'),
    [
        ('tiny', {}, 5_962_176),
        ('small', {}, 23_435_136),
        ('base', {}, 92_876_544),
        ('large', dict(img_size=192), 328_659_968),
    ],
)
def test_parameter_count_of_the_original(arch, options, number):
    with torch.device('meta'):
        assert count(VRWKV(arch, **options)) == number


@pytest.mark.parametrize(
    ('arch', 'size', 'width', 'depth'), [('tiny', 224, 192, 12), ('small', 512, 384, 12)]
)
def test_multiply_adds(arch, size, width, depth):
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        VRWKV(arch)(torch.empty(1, 3, size, size))
    tokens = (size // 16) ** 2
    # 4 square matrices and 9 of the channel mix, patches, and seven multiply-adds of Bi-WKV.
    by_hand = (13 * width**2 * depth + 3 * 16**2 * width + 7 * width * depth) * tokens
    assert counter.get_total_flops() == 2 * by_hand


# ---- parts


def shift_by_hand(x):
    _, H, W, C = x.shape
    out = torch.zeros_like(x)
    quarter = [int(C * q / 4) for q in range(5)]
    for h in range(H):
        for w in range(W):
            for q, (dh, dw) in enumerate(((0, -1), (0, 1), (-1, 0), (1, 0))):
                if 0 <= h + dh < H and 0 <= w + dw < W:
                    part = slice(quarter[q], quarter[q + 1])
                    out[:, h, w, part] = x[:, h + dh, w + dw, part]
    return out


@pytest.mark.parametrize('shape', [(2, 3, 4, 8), (1, 1, 5, 18), (1, 5, 1, 7), (1, 1, 1, 3)], ids=str)
def test_q_shift(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(q_shift(x), shift_by_hand(x))


def test_initial_values_follow_the_original():
    model = VRWKV(dict(embed_dims=8, depth=3))
    for i, layer in enumerate(model.layers):
        for c in range(8):
            decay = -5 + 8 * (c / 7) ** (0.7 + 1.3 * i / 2)
            first = math.log(0.3) + 0.5 * ((c + 1) % 3 - 1)
            mix = (c / 8) ** (1 - i / 3)
            assert layer.att.spatial_decay[c].item() == pytest.approx(decay, rel=1e-5, abs=1e-5)
            assert layer.att.spatial_first[c].item() == pytest.approx(first, rel=1e-5)
            assert layer.att.spatial_mix_k[0, 0, c].item() == pytest.approx(mix, rel=1e-5)
            assert layer.att.spatial_mix_v[0, 0, c].item() == pytest.approx(mix + 0.3 * i / 2, rel=1e-5)
            assert layer.att.spatial_mix_r[0, 0, c].item() == pytest.approx(mix**0.5, rel=1e-5)
            assert layer.ffn.spatial_mix_k[0, 0, c].item() == pytest.approx(mix, rel=1e-5)
            assert layer.ffn.spatial_mix_r[0, 0, c].item() == pytest.approx(mix, rel=1e-5)
    assert not model.pos_embed.any()
    assert VRWKV(dict(embed_dims=1, depth=1)).layers[0].att.spatial_decay.isfinite().all()
    for layer in VRWKV(dict(SMALL, layer_scale=1e-5)).layers:
        assert torch.equal(layer.gamma1, torch.full((18,), 1e-5))
        assert torch.equal(layer.gamma2, torch.full((18,), 1e-5))
    torch.manual_seed(0)
    model = VRWKV(dict(embed_dims=64, depth=1))
    model.init_weights()
    assert model.layers[0].ffn.key.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_positional_embedding_is_stored_for_a_grid():
    model = small(img_size=(40, 70), patch_size=(16, 20))
    assert model.pos_embed.shape == (1, 3 * 4, 18)
    x = image(40, 70)
    plain = copy.deepcopy(model)
    nn.init.zeros_(plain.pos_embed)
    difference = (model.embed(x) - plain.embed(x)).flatten(1, 2)
    torch.testing.assert_close(difference, model.pos_embed.expand(2, -1, -1), rtol=1e-5, atol=1e-5)
    # Elsewhere the grid is stretched over the map.
    difference = model.embed(image(96, 160)) - plain.embed(image(96, 160))
    grid = model.pos_embed.view(1, 3, 4, 18).permute(0, 3, 1, 2)
    stretched = F.interpolate(grid, (6, 8), mode='bicubic', align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(difference, stretched.expand(2, -1, -1, -1), rtol=1e-5, atol=1e-5)


# ---- the contract


def test_a_model_that_has_run_can_be_copied_and_pickled():
    model, x = small(), image(32, 32)
    maps = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x)[0], maps[0])


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_sizes(size):
    maps = small(out_indices=(0, -1))(image(*size))
    wanted = (2, 18, math.ceil(size[0] / 16), math.ceil(size[1] / 16))
    assert [tuple(m.shape) for m in maps] == [wanted, wanted]
    assert all(m.isfinite().all() for m in maps)


def test_padding_is_zeros_below_and_right():
    model, x = small(), image(33, 46)
    padded = F.pad(x, (0, 48 - 46, 0, 48 - 33))
    assert torch.equal(model(x)[0], model(padded)[0])


def test_only_the_last_map_is_normalised():
    model = small(out_indices=(0, 1, 2))
    raw = []
    model.layers[2].register_forward_hook(lambda *args: raw.append(args[-1]))
    last = model(image(32, 32))[-1]
    torch.testing.assert_close(last, model.ln1(raw[0]).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    'arch', [SMALL, dict(SMALL, post_norm=False, layer_scale=None, key_norm=True)], ids=len
)
def test_every_parameter_receives_a_gradient(arch):
    model = small(arch=arch, out_norm_cfg=dict(type='LN')).train()
    (out,) = model(image(96, 96))
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(0)))
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert param.grad.any(), name


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3])
def test_frozen_stages(frozen_stages):
    """0 freezes the embedding, n the embedding and the first n layers."""
    model = small(frozen_stages=frozen_stages, drop_path_rate=0.5)
    assert model.train() is model

    def frozen(name):
        if name.startswith(('patch_embed', 'pos_embed')):
            return frozen_stages >= 0
        return name.startswith('layers.') and int(name.split('.')[1]) < frozen_stages

    for name, module in model.named_modules():
        if name.startswith(('patch_embed', 'layers.')):
            assert module.training is not frozen(name), name
    model(image(32, 32))[0].square().sum().backward()
    for name, param in model.named_parameters():
        assert param.requires_grad is not frozen(name), name
        assert (param.grad is None) is frozen(name), name
    assert not any(m.training for m in model.eval().modules())


def test_drop_path():
    model = small(drop_path_rate=0.4)
    rates = [{m.drop_prob for m in layer.modules() if isinstance(m, DropPath)} for layer in model.layers]
    assert [rate for (rate,) in rates] == pytest.approx([0, 0.2, 0.4])
    # Rates 0 and 0.5: the second layer keeps neither, either or both of its branches, sample by sample.
    torch.manual_seed(0)
    model = small(arch=dict(embed_dims=8, depth=2), drop_path_rate=0.5).train()
    out = model(image(32, 32, batch=1).expand(64, -1, -1, -1))[0].detach().flatten(1)
    assert len(out.round(decimals=3).unique(dim=0)) == 4
    out = model.eval()(image(32, 32, batch=1).expand(4, -1, -1, -1))[0]
    assert torch.allclose(out, out[:1], atol=1e-6)


@pytest.mark.parametrize('frozen_stages', [-1, 2])
def test_with_cp(frozen_stages):
    options = dict(drop_path_rate=0.5, frozen_stages=frozen_stages)
    models = [small(**options).train(), small(with_cp=True, **options).train()]
    calls, grads = [], []
    for layer in models[1].layers:
        layer.att.register_forward_hook(lambda module, *_: calls.append(module))
    for model in models:
        torch.manual_seed(0)
        x = image(33, 46, batch=4).requires_grad_()
        model(x)[0].square().sum().backward()
        grads.append([x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    assert len(calls) == 2 * 3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_whole_model_in_another_dtype(dtype):
    model, x = small().eval(), image(48, 64)
    with torch.no_grad():
        ref, got = model(x)[0], model.to(dtype)(x.to(dtype))[0]
    assert got.dtype == dtype
    limit = 0.1 if dtype == torch.bfloat16 else 1e-5
    assert (got.double() - ref).square().mean().sqrt() <= limit * ref.square().mean().sqrt()


def test_released_classifier_loads_by_init_cfg(tmp_path):
    name = 'post'
    state = released_state(name)
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'released.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'released.pth'), prefix='backbone.')
    arch = dict(embed_dims=16, depth=3, post_norm=True, layer_scale=1.0)
    model = VRWKV(arch, img_size=32, patch_size=4, init_cfg=init)
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[f'backbone.{key}']), key


def test_layer_depth():
    model = small(out_norm_cfg=dict(type='LN'))
    for prefix in ('', 'backbone.'):
        depths = {n: model.get_layer_depth(prefix + n, prefix) for n, _ in model.named_parameters()}
        assert {number for _, number in depths.values()} == {5}
        assert depths['pos_embed'][0] == depths['patch_embed.projection.weight'][0] == 0
        assert depths['layers.0.ln0.weight'][0] == depths['layers.0.att.spatial_decay'][0] == 1
        assert depths['layers.2.gamma2'][0] == 3
        assert depths['ln1.weight'][0] == depths['out_norms.2.weight'][0] == 4
    assert model.get_layer_depth('decode_head.conv_seg.weight', 'backbone.') == (4, 5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "arch must be one of .* or a dict, got 'huge'"),
        (dict(arch=dict(embed_dims=8)), r"'embed_dims' and 'depth' .* got \['embed_dims'\]"),
        (dict(arch=dict(SMALL, heads=3)), "got .*'heads'"),
        (dict(arch=dict(embed_dims=8, depth=0)), 'embed_dims and depth must be positive'),
        (dict(in_channels=0), 'in_channels must be positive, got 0'),
        (dict(patch_size=(16, 0)), 'patch_size must be positive, got 16, 0'),
        (dict(img_size=-1), 'img_size must be positive'),
        (dict(hidden_ratio=0), 'hidden_ratio must be positive, got 0'),
        (dict(drop_path_rate=1.0), r'drop_path_rate must be in \[0, 1\), got 1\.0'),
        (dict(out_indices=(3,)), r'out_indices must be layers in \[-3, 3\), got \(3,\)'),
        (dict(out_indices=3), 'out_indices .* got 3'),
        (dict(out_indices=()), r'out_indices .* got \(\)'),
        (dict(frozen_stages=4), r'frozen_stages must be in \[-1, 3\], got 4'),
        (dict(distance='euclid'), r"distance must be one of \('paper', 'released'\), got 'euclid'"),
        (dict(wkv_backend='warp'), "bi_wkv backend must be 'auto' or one of .*, got 'warp'"),
    ],
    ids=str,
)
def test_bad_argument(options, message):
    with pytest.raises(ValueError, match=message) as info:
        VRWKV(**{'arch': SMALL, **options})
    assert '\n' not in str(info.value)
