"""Other backbones under the recipe of VisionGRU: nothing else differs, and the small ones are of its size."""

import functools
import re
from pathlib import Path

import pytest
import torch

from mmvisiongru.zoo import build_model as build_by_name
from mmvisiongru.zoo import model_config
from tests.harness.config_builders import CONFIGS, EXPERIMENTS, LEAVES, build_model, difference, load
from tools.analysis_tools.flops import count, image_size

SMALL = sorted(f'{EXPERIMENTS}/peers/{path.name}' for path in (CONFIGS / EXPERIMENTS / 'peers').glob('*.py'))
PEERS = [name for name in LEAVES if name.startswith('peers/')] + SMALL
PARENTS = {
    '8xb128_in1k': 'classification/visiongru-tiny_8xb128_in1k.py',
    'upernet_8xb2-160k_ade20k-512x512': 'segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py',
    '1xb32_caltech101-64px': 'classification/visiongru-pico_1xb32_caltech101-64px.py',
    'upernet_1xb8-1k_camvid-180x240': 'segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py',
}
# Of mmpretrain, so that this project has no copy that could be worse than the original; it has no VRWKV.
CLASSES = dict(swin='SwinTransformer', convnext='ConvNeXt', deit='VisionTransformer', vrwkv='VRWKV')
# One map at one scale: UperNet needs a neck that makes a pyramid of it.
PLAIN = ('deit', 'vrwkv')
# What follows from the backbone: the widths that heads read, and a pyramid where it has none.
FOLLOWS = r'model\.(backbone\.|(head|decode_head|auxiliary_head)\.in_channels$|neck)'


def parent(name):
    return PARENTS[Path(name).stem.split('_', 1)[1]]


def kind(name):
    return Path(name).name.split('-')[0]


@pytest.mark.parametrize('name', PEERS)
def test_backbone_is_the_only_difference(name):
    changed = difference(name, parent(name))
    assert 'model.backbone.type' in changed
    assert not [key for key in changed if not re.match(FOLLOWS, key)]
    # Only a backbone without a pyramid has a neck for one.
    necks = {key for key in changed if key.startswith('model.neck')}
    assert bool(necks) == (kind(name) in PLAIN and 'upernet' in name)


@pytest.mark.parametrize('name', PEERS)
def test_backbone_is_that_of_mmpretrain_without_regularisation_of_its_own(name):
    backbone = build_model(load(name), 'cpu').backbone
    assert type(backbone).__name__ == CLASSES[kind(name)]
    library = 'mmvisiongru' if kind(name) == 'vrwkv' else 'mmpretrain'
    assert type(backbone).__module__.startswith(f'{library}.models.')
    rates = {getattr(m, 'drop_prob', 0) for m in backbone.modules()}
    rates |= {m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates <= {0, None}


@functools.cache
def counted(name):
    cfg = model_config(str(CONFIGS / name))
    return count(build_by_name(cfg).to('meta'), image_size(cfg))


@pytest.mark.parametrize('name', SMALL)
def test_small_peer_has_the_size_of_visiongru(name):
    found, of_visiongru = counted(name), counted(parent(name))
    assert found['parameters'] == pytest.approx(of_visiongru['parameters'], rel=0.05)
    assert found['macs'] == pytest.approx(of_visiongru['macs'], rel=0.15)
