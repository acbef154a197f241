"""The parameters of the backbone: how many, called what, initialised how; and its multiply-adds."""

import math
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvisiongru.models.visiongru import VisionGRU


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
