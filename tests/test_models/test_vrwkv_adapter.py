"""VRWKVAdapter: values of the original, deformable attention by its definition, and the contract."""

import logging
import math
import re

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import MMLogger
from torch import nn

from mmvisiongru.errors import InputError
from mmvisiongru.models import VRWKV, VRWKVAdapter
from mmvisiongru.models.layers.deformable import DeformableAttention, cell_centres
from tests.harness.vrwkv import (
    CASES,
    LIMITS,
    assert_original,
    count,
    image,
    original_arguments,
    released_names,
    released_state,
    results,
)

SMALL = dict(embed_dims=12, depth=4, layer_scale=0.5, num_heads=3)


def small(seed=0, **options):
    """A small model whose every parameter matters, with norms that have seen something."""
    torch.manual_seed(seed)
    model = VRWKVAdapter(**{'arch': SMALL, 'prior_channels': 4, 'points': 2, **options})
    for name, param in model.named_parameters():
        if 'sampling_offsets.bias' not in name:
            nn.init.normal_(param, mean=float(param.ndim == 1), std=0.3)
    for name, value in model.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            nn.init.uniform_(value, 0.5, 1.5)
    return model.eval()


def original(dtype):
    """The backbone of the fixture; loading is strict, so that the names are checked as well."""
    settings = original_arguments('adapter')
    arch = dict(
        embed_dims=settings['embed_dims'],
        depth=settings['depth'],
        layer_scale=settings['init_values'],
        num_heads=settings['deform_num_heads'],
        value_ratio=settings['deform_ratio'],
    )
    backbone = VRWKVAdapter(
        arch,
        img_size=settings['img_size'],
        prior_channels=settings['conv_inplane'],
        points=settings['n_points'],
    )
    model = nn.ModuleDict(dict(backbone=backbone))
    model.load_state_dict(released_state('adapter'))
    return model.to(dtype).eval()


@pytest.mark.parametrize('dtype', LIMITS, ids=str)
@pytest.mark.parametrize('case', [case for name, case in CASES if name == 'adapter'])
def test_values_of_the_original(case, dtype):
    found = results(original(dtype), 'adapter', case, dtype)
    # In float32 the norm of a single gradient is only as exact as the weights are: see the next test.
    exact = dtype == torch.float64
    assert assert_original(found, 'adapter', case, LIMITS[dtype], each_norm=exact) == 6


def test_each_gradient_is_as_exact_as_float32_weights_allow():
    """Not every norm can be asked to 1e-5 of itself: half a last digit of the weights moves some by as much.

    Of the float64 model, whose own error is 3e-14, so that no order of a sum would help.
    """

    def norms(model, dtype):
        return results(model, 'adapter', 0, dtype)['grad_norms']

    exact, moved = norms(original(torch.float64), torch.float64), 0.0
    for seed in range(3):
        model = original(torch.float64)
        generator = torch.Generator().manual_seed(seed)
        for param in model.parameters():
            half = 2 * torch.rand(param.shape, generator=generator, dtype=param.dtype) - 1
            param.data *= 1 + 2**-24 * half
        moved = max(moved, (norms(model, torch.float64) / exact - 1).abs().max().item())
    assert moved > 0.5e-5
    assert (norms(original(torch.float32), torch.float32) / exact - 1).abs().max() <= moved


@pytest.mark.parametrize(
    ('arch', 'number'),
    [('tiny', 8_404_592), ('small', 29_264_528), ('base', 106_555_616), ('large', 351_894_720)],
)
def test_parameter_count_of_the_original(arch, number):
    with torch.device('meta'):
        assert count(VRWKVAdapter(arch, img_size=192 if arch == 'large' else 224)) == number


def test_names_and_shapes_of_the_released_backbone():
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=VRWKVAdapter()))
    own = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert own == released_names('adapter_tiny')


# ---- deformable attention


def read_by_hand(feature, x, y):
    """Bilinear interpolation of (H, W, C) at a place in pixels whose centres are at .5; zero outside."""
    H, W, _ = feature.shape
    x, y = x - 0.5, y - 0.5
    left, top = math.floor(x), math.floor(y)
    out = torch.zeros_like(feature[0, 0])
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < H and 0 <= column < W:
                out = out + (1 - abs(x - column)) * (1 - abs(y - row)) * feature[row, column]
    return out


def attend_by_hand(layer, query, places, x, shapes):
    """The equation of the class, place by place."""
    B, Q, _ = query.shape
    heads, levels, points = layer.num_heads, layer.levels, layer.points
    value = layer.value_proj(x)
    D = value.size(2) // heads
    offsets = layer.sampling_offsets(query).view(B, Q, heads, levels, points, 2)
    weights = layer.attention_weights(query).view(B, Q, heads, -1).softmax(-1)
    weights = weights.view(B, Q, heads, levels, points)
    out = torch.zeros(B, Q, heads * D, dtype=query.dtype)
    for b in range(B):
        for q in range(Q):
            for h in range(heads):
                begin = 0
                for level, (H, W) in enumerate(shapes):
                    feature = value[b, begin : begin + H * W, h * D : (h + 1) * D].view(H, W, D)
                    begin += H * W
                    for p in range(points):
                        shift = offsets[b, q, h, level, p]
                        at = places[q, 0] * W + shift[0], places[q, 1] * H + shift[1]
                        read = read_by_hand(feature, *(float(a) for a in at))
                        out[b, q, h * D : (h + 1) * D] += weights[b, q, h, level, p] * read
    return layer.output_proj(out)


@pytest.mark.parametrize('shapes', [[(2, 3)], [(4, 2), (2, 1), (1, 1)]], ids=str)
def test_deformable_attention_is_its_equation(shapes):
    torch.manual_seed(0)
    layer = DeformableAttention(12, num_heads=3, levels=len(shapes), points=2, value_ratio=0.5).double()
    for param in layer.parameters():
        nn.init.normal_(param, std=0.7)
    tokens = sum(H * W for H, W in shapes)
    query, x = torch.randn(2, 5, 12).double(), torch.randn(2, tokens, 12).double()
    places = torch.rand(5, 2).double()
    with torch.no_grad():
        got, ref = (f(query, places, x, shapes) for f in (layer, lambda *a: attend_by_hand(layer, *a)))
    torch.testing.assert_close(got, ref, rtol=1e-10, atol=1e-10)


def test_initial_points_lie_around_the_query():
    layer = DeformableAttention(8, num_heads=4, levels=2, points=3, value_ratio=1.0)
    bias = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    for head, direction in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        for level in range(2):
            for point in range(3):
                wanted = torch.tensor(direction) * (point + 1.0)
                torch.testing.assert_close(bias[head, level, point], wanted, atol=1e-5, rtol=0)
    assert not layer.sampling_offsets.weight.any()
    assert not layer.attention_weights.weight.any()


def test_cell_centres_are_x_first_and_row_by_row():
    centres = cell_centres([(1, 2), (2, 1)], torch.float64, 'cpu')
    assert centres.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


# ---- the contract


@pytest.mark.parametrize('size', [(64, 96), (33, 46), (1, 1), (70, 31)], ids=str)
def test_sizes(size):
    maps = small()(image(*size))
    wanted = [(2, 12, *(-(-side // stride) for side in size)) for stride in (4, 8, 16, 32)]
    assert [tuple(m.shape) for m in maps] == wanted
    assert all(m.isfinite().all() for m in maps)


def test_pico_has_a_layer_more_than_the_plain_backbone():
    backbone = VRWKVAdapter('pico').eval()
    assert backbone.depth == 12
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 32, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(96, 8, 16), (96, 4, 8), (96, 2, 4), (96, 1, 2)]


def test_every_parameter_receives_a_gradient():
    model = small().train()
    maps = model(image(96, 96))
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert param.grad.any(), name


def test_nothing_is_injected_at_the_start():
    """The layers begin as those of the plain backbone, on which they were trained."""
    torch.manual_seed(0)
    adapter = VRWKVAdapter(SMALL, prior_channels=4, points=2).eval()
    plain = VRWKV({k: v for k, v in SMALL.items() if k != 'num_heads'}, out_indices=range(4)).eval()
    plain.load_state_dict(adapter.state_dict(), strict=False)
    maps = []
    for layer in adapter.layers:
        layer.register_forward_hook(lambda *args: maps.append(args[-1].permute(0, 3, 1, 2)))
    adapter(image(64, 96))
    nn.init.ones_(plain.ln1.weight)
    for got, ref in zip(maps[:3], plain(image(64, 96)), strict=False):
        torch.testing.assert_close(got, ref)


def test_initial_values():
    torch.manual_seed(0)
    model = VRWKVAdapter(dict(embed_dims=48, depth=4, num_heads=3), prior_channels=16)
    assert model.layers[0].att.key.weight.std().item() == pytest.approx(0.02, rel=0.1)
    ffn = model.interactions[0].extractor.ffn
    assert ffn.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert ffn.dwconv.dwconv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.2)
    assert model.spm.conv3[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    assert model.up.weight.std().item() == pytest.approx((2 / (48 * 4)) ** 0.5, rel=0.1)
    assert model.level_embed.std().item() == pytest.approx(1, rel=0.2)
    assert not any(i.injector.gamma.any() for i in model.interactions)
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith('fc1.bias'))


def test_frozen_stages():
    model = small(frozen_stages=2)
    assert model.train() is model
    sum(m.sum() for m in model(image(32, 64))).backward()
    for name, param in model.named_parameters():
        frozen = name.startswith(('patch_embed', 'pos_embed', 'layers.0.', 'layers.1.'))
        assert (param.grad is None) is frozen, name
    assert not model.layers[1].training
    assert model.layers[2].training


def test_with_cp():
    grads, calls = [], []
    for with_cp in (False, True):
        model = small(with_cp=with_cp, drop_path_rate=0.5).train()
        parts = [*model.layers, *(m for m in model.modules() if isinstance(m, DeformableAttention))]
        # A forward hook, that a recomputation calls as well.
        for module in parts[:1] + parts[-1:]:
            inner = module.att if hasattr(module, 'att') else module
            inner.register_forward_hook(lambda *_, with_cp=with_cp: calls.append(with_cp))
        torch.manual_seed(0)
        x = image(32, 64).requires_grad_()
        sum(m.square().sum() for m in model(x)).backward()
        grads.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    assert (calls.count(False), calls.count(True)) == (2, 4)


def test_drop_path_rises_in_the_layers_and_is_whole_in_the_extractors():
    model = small(drop_path_rate=0.3)
    assert [layer.drop_path.drop_prob for layer in model.layers] == pytest.approx([0, 0.1, 0.2, 0.3])
    rates = [m.drop_prob for m in model.interactions.modules() if isinstance(m, DropPath)]
    assert rates == [0.3] * 6


def test_autocast_and_whole_model_in_bf16():
    model, x = small(), image(64, 64)
    with torch.no_grad():
        ref = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            cast = model(x)
        whole = model.bfloat16()(x.bfloat16())
    for a, b, c in zip(ref, cast, whole, strict=True):
        scale = a.square().mean().sqrt()
        assert (b.float() - a).square().mean().sqrt() <= 0.05 * scale
        assert (c.float() - a).square().mean().sqrt() <= 0.1 * scale
        assert c.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch=dict(SMALL, depth=6)), 'depth must be a multiple of 4, got 6'),
        (dict(arch=dict(SMALL, num_heads=5)), 'heads must divide the width of the values, got 5 for 12'),
        (dict(arch='nano'), 'arch must be one of .*tiny'),
        (dict(arch=dict(SMALL, head=1)), "got .*'head'"),
        (dict(points=0), 'points must be positive, got 0'),
        (dict(prior_channels=0), 'prior_channels must be positive, got 0'),
    ],
    ids=str,
)
def test_bad_argument(options, message):
    with pytest.raises(ValueError, match=message) as info:
        VRWKVAdapter(**{'arch': SMALL, **options})
    assert '\n' not in str(info.value)


# ---- released checkpoints


def load_by_init_cfg(state, tmp_path):
    """What the log says when a checkpoint initialises an adapter."""
    torch.save(dict(state_dict=state), tmp_path / 'released.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'released.pth'), prefix='backbone.')
    model = VRWKVAdapter(dict(SMALL, embed_dims=16, num_heads=2), img_size=64, prior_channels=4, points=2)
    model.init_cfg = init
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        model.init_weights()
    finally:
        logger.removeHandler(handler)
    return model, '\n'.join(records)


def test_released_segmentor_loads_whole(tmp_path):
    state = released_state('adapter')
    model, log = load_by_init_cfg(state | {'decode_head.conv_seg.bias': torch.zeros(3)}, tmp_path)
    assert 'missing' not in log
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[f'backbone.{key}']), key


def test_gammas_that_tiny_lacks_are_named(tmp_path):
    state = {k: v for k, v in released_state('adapter').items() if '.gamma1' not in k and '.gamma2' not in k}
    model, log = load_by_init_cfg(state, tmp_path)
    (named,) = [line for line in log.splitlines() if line.startswith('missing keys')]
    assert set(re.findall(r'[\w.]+gamma\d', named)) == {
        f'layers.{i}.gamma{n}' for i in range(4) for n in (1, 2)
    }
    assert torch.equal(model.layers[3].gamma2, torch.full((16,), 0.5))
    assert torch.equal(model.layers[3].ffn.key.weight, state['backbone.layers.3.ffn.key.weight'])


def test_foreign_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match='no key of the model'):
        load_by_init_cfg({'backbone.stem.weight': torch.zeros(1)}, tmp_path)
