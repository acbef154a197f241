"""VRWKVAdapter: values of the original, deformable attention by its definition, and the contract."""

import pytest
import torch
from torch import nn

from mmvisiongru.models import VRWKV, VRWKVAdapter
from mmvisiongru.models.layers.deformable import DeformableAttention
from tests.harness.backbones import SMALL, image
from tests.harness.vrwkv import CASES, LIMITS, assert_original, original, released_state, results


@pytest.mark.parametrize('dtype', LIMITS, ids=str)
@pytest.mark.parametrize('case', [case for name, case in CASES if name == 'adapter'])
def test_values_of_the_original(case, dtype):
    found = results(original('adapter', dtype), 'adapter', case, dtype)
    # In float32 half a last digit of the weights moves the norm of some gradients by as much as the limit.
    exact = dtype == torch.float64
    assert assert_original(found, 'adapter', case, LIMITS[dtype], each_norm=exact) == 6


def test_last_tokens_go_to_all_maps_as_released_for_detection():
    torch.manual_seed(0)
    models = {tokens: VRWKVAdapter('pico', tokens=tokens).eval() for tokens in ('each', 'last')}
    models['last'].load_state_dict(models['each'].state_dict())
    inputs, kept, interact = {}, [], models['each']._interact
    models['each']._interact = lambda *args: kept.append(interact(*args)) or kept[0]
    for name, model in models.items():
        for norm in (model.norm1, model.norm2, model.norm3, model.norm4):
            norm.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0]))
        model(image(64, 96))
    tokens = kept[0][0]
    for i, scale in enumerate((4, 2, 1, 0.5)):
        added = [
            nn.functional.interpolate(x, scale_factor=scale, mode='bilinear') for x in (tokens[3], tokens[i])
        ]
        torch.testing.assert_close(
            inputs['last'][i] - inputs['each'][i], added[0] - added[1], rtol=0, atol=1e-5
        )
        assert (i < 3) == bool((tokens[3] - tokens[i]).abs().max() > 1e-2)


# ---- deformable attention


def attend_by_hand(layer, query, places, x, shapes):
    """The equation of the class, with the share of every pixel (centres at .5) in what is read at a place."""
    by_point = (layer.num_heads, layer.levels, layer.points)
    offsets = layer.sampling_offsets(query).unflatten(2, (*by_point, 2))
    weights = layer.attention_weights(query).unflatten(2, (layer.num_heads, -1)).softmax(3)
    weights, values = (
        weights.unflatten(3, by_point[1:]),
        layer.value_proj(x).unflatten(2, (layer.num_heads, -1)),
    )
    out = 0
    for level, (H, W) in enumerate(shapes):
        at = places[:, None, None] * torch.tensor([W, H]) + offsets[:, :, :, level] - 0.5
        shares = [(1 - (at[..., i, None] - torch.arange(n)).abs()).clamp(min=0) for i, n in enumerate((W, H))]
        map_, values = values[:, : H * W].unflatten(1, (H, W)), values[:, H * W :]
        out = out + torch.einsum('bqhp,bqhpx,bqhpy,byxhd->bqhd', weights[:, :, :, level], *shares, map_)
    return layer.output_proj(out.flatten(2))


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
    directions = torch.tensor([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])[:, None, None]
    wanted = (directions * torch.arange(1.0, 4.0)[:, None]).expand_as(bias)
    torch.testing.assert_close(bias, wanted, atol=1e-5, rtol=0)
    assert not layer.sampling_offsets.weight.any()
    assert not layer.attention_weights.weight.any()


# ---- initial values


def test_nothing_is_injected_at_the_start():
    """The layers begin as those of the plain backbone, on which they were trained."""
    torch.manual_seed(0)
    adapter = VRWKVAdapter(**SMALL[VRWKVAdapter]).eval()
    arch = SMALL[VRWKVAdapter]['arch']
    plain = VRWKV({k: v for k, v in arch.items() if k != 'num_heads'}, out_indices=range(4)).eval()
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


# ---- released checkpoints


def test_released_segmentor_loads_by_init_cfg(tmp_path):
    # Without the factors of the branches, which tiny's classifier lacks.
    state = {k: v for k, v in released_state('adapter').items() if '.gamma' not in k or 'injector' in k}
    torch.save(dict(state_dict=state | {'decode_head.conv_seg.bias': torch.zeros(3)}), tmp_path / 'x.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'), prefix='backbone.')
    options = SMALL[VRWKVAdapter]
    arch = dict(options['arch'], embed_dims=16, num_heads=2)
    model = VRWKVAdapter(**{**options, 'arch': arch}, img_size=64, init_cfg=init)
    model.init_weights()
    for key, value in model.state_dict().items():
        wanted = torch.full((16,), 0.5) if f'backbone.{key}' not in state else state[f'backbone.{key}']
        assert torch.equal(value, wanted), key
