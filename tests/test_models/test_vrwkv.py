"""VRWKV: values of the original, and the contract of the field."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvisiongru.models import VRWKV, VRWKVAdapter
from mmvisiongru.models.layers.rwkv_mix import q_shift
from tests.harness.backbones import SMALL, image, small
from tests.harness.vrwkv import CASES, FIXTURE, LIMITS, assert_original, original, results

PLAIN = [pair for pair in CASES if pair[0] != 'adapter']
RELEASED = [pair for pair in PLAIN if '{}/case{}/released/logits'.format(*pair) in FIXTURE.files]


# ---- values of the original


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


# ---- parameters


@pytest.mark.parametrize(
    ('kind', 'numbers'),
    [
        (VRWKV, (5_962_176, 23_435_136, 92_876_544, 328_659_968)),
        (VRWKVAdapter, (8_404_592, 29_264_528, 106_555_616, 351_894_720)),
    ],
)
def test_parameter_counts_of_the_original(kind, numbers):
    for arch, number in zip(('tiny', 'small', 'base', 'large'), numbers, strict=True):
        with torch.device('meta'):
            model = kind(arch, img_size=192 if arch == 'large' else 224)
        assert sum(p.numel() for p in model.parameters()) == number, arch


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
    for layer in VRWKV(dict(SMALL[VRWKV]['arch'], layer_scale=1e-5)).layers:
        assert torch.equal(layer.gamma1, torch.full((18,), 1e-5))
        assert torch.equal(layer.gamma2, torch.full((18,), 1e-5))
    torch.manual_seed(0)
    model = VRWKV(dict(embed_dims=64, depth=1))
    model.init_weights()
    assert model.layers[0].ffn.key.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_positional_embedding_is_stored_for_a_grid():
    model = small(VRWKV, img_size=(40, 70), patch_size=(16, 20))
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


def test_padding_is_zeros_below_and_right():
    model, x = small(VRWKV), image(33, 46)
    padded = F.pad(x, (0, 48 - 46, 0, 48 - 33))
    assert torch.equal(model(x)[0], model(padded)[0])


def test_only_the_last_map_is_normalised():
    model = small(VRWKV, out_indices=(0, 1, 2))
    raw = []
    model.layers[2].register_forward_hook(lambda *args: raw.append(args[-1]))
    last = model(image(32, 32))[-1]
    torch.testing.assert_close(last, model.ln1(raw[0]).permute(0, 3, 1, 2))
