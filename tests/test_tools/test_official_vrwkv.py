"""The converter of released weights on Vision-RWKV, whose names are ours already."""

import sys

import mmpretrain.models  # noqa: F401
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from mmvisiongru.errors import InputError
from mmvisiongru.models import VRWKV, VRWKVAdapter
from mmvisiongru.models.convert import arch_of, name_of, to_mmvisiongru, to_released
from tests.harness.vrwkv import FIXTURE, released_names, released_state
from tools.model_converters import official_to_mmvisiongru as converter


def empty(names):
    return {name: torch.empty(shape, device='meta') for name, shape in names.items()}


def shapes(state):
    return {name: list(value.shape) for name, value in state.items()}


def assert_same(got, expected):
    assert set(got) == set(expected)
    assert all(torch.equal(got[k], v) for k, v in expected.items())


def large():
    """A state dict like VRWKV-L's, small: key norms, and a head of two layers."""
    head = {'head.0.weight': (5, 16), 'head.0.bias': (5,), 'head.2.weight': (7, 5), 'head.2.bias': (7,)}
    state = {k: v for k, v in released_state('key').items() if k.startswith('backbone.')}
    return state | {name: torch.randn(shape) for name, shape in head.items()}


@pytest.mark.parametrize(('names', 'kind'), [('tiny', VRWKV), ('adapter_tiny', VRWKVAdapter)])
def test_every_released_name_is_kept(names, kind):
    released = empty(released_names(names))
    ours = to_mmvisiongru(released)
    assert shapes(ours) == released_names(names) == shapes(to_released(ours))
    assert name_of(ours) == 'tiny'
    assert {k: kind.arch_settings['tiny'][k] for k in ('embed_dims', 'depth')}.items() <= arch_of(
        ours
    ).items()


@pytest.mark.parametrize('arch', ['small', 'base', 'large'])
@pytest.mark.parametrize('kind', [VRWKV, VRWKVAdapter])
def test_size_is_recognised(kind, arch):
    with torch.device('meta'):
        model = torch.nn.ModuleDict(dict(backbone=kind(arch, img_size=192)))
    assert name_of(to_mmvisiongru(model.state_dict())) == arch


@pytest.mark.parametrize('name', ['pre', 'post', 'key', 'adapter'])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.'])
def test_round_trip_is_exact(name, prefix):
    state = released_state(name)
    ours = to_mmvisiongru({prefix + k: v for k, v in state.items()})
    assert_same(to_released(ours), state)


def test_backbone_alone_gets_the_prefix_of_a_model():
    state = {k: v for k, v in released_state('adapter').items() if k.startswith('backbone.')}
    assert_same(to_mmvisiongru({k.removeprefix('backbone.'): v for k, v in state.items()}), state)


def test_segmentor_keeps_its_heads():
    heads = {'decode_head.conv_seg.bias': torch.ones(3), 'auxiliary_head.conv_seg.bias': torch.ones(3)}
    state = released_state('adapter') | heads
    assert_same(to_mmvisiongru(state), state)
    assert_same(to_released(state), state)


def test_head_of_large_is_the_one_of_mmpretrain(tmp_path, monkeypatch):
    torch.save(large(), tmp_path / 'released.pth')
    argv = ['official_to_mmvisiongru.py', str(tmp_path / 'released.pth'), str(tmp_path / 'ours.pth')]
    monkeypatch.setattr(sys, 'argv', argv)
    converter.main()
    cfg = dict(
        _scope_='mmpretrain',
        type='ImageClassifier',
        backbone=dict(
            type='mmvisiongru.VRWKV',
            arch=dict(embed_dims=16, depth=3, post_norm=True, key_norm=True, layer_scale=1.0),
            img_size=32,
            patch_size=4,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='VisionTransformerClsHead', num_classes=7, in_channels=16, hidden_dim=5),
    )
    model = MODELS.build(cfg).eval()
    load_checkpoint(model, str(tmp_path / 'ours.pth'), map_location='cpu', strict=True)
    x = torch.from_numpy(FIXTURE['key/case0/input'])
    with torch.no_grad():
        got, mean = model(x, mode='tensor'), model.backbone(x)[0].mean((2, 3))
    weights = weights_in(tmp_path / 'released.pth')
    hidden = torch.tanh(mean @ weights['head.0.weight'].T + weights['head.0.bias'])
    torch.testing.assert_close(got, hidden @ weights['head.2.weight'].T + weights['head.2.bias'])
    assert_same(to_released(to_mmvisiongru(weights)), weights)


def weights_in(path):
    return torch.load(path, weights_only=True)


def test_meta_says_what_the_file_is(tmp_path, monkeypatch):
    torch.save(dict(state_dict=released_state('post')), tmp_path / 'released.pth')
    argv = ['official_to_mmvisiongru.py', str(tmp_path / 'released.pth'), str(tmp_path / 'ours.pth')]
    monkeypatch.setattr(sys, 'argv', argv)
    converter.main()
    meta = torch.load(tmp_path / 'ours.pth', weights_only=True)['meta']
    arch = dict(embed_dims=16, depth=3, key_norm=False, layer_scale=1.0)
    assert meta.items() >= dict(arch=arch, source='released.pth', **arch).items()


BLOCK = 'backbone.layers.1'


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda s: {k: v for k, v in s.items() if k != f'{BLOCK}.ln1.bias'}, f'missing {BLOCK}.ln1.bias'),
        (lambda s: {k: v for k, v in s.items() if k != 'backbone.pos_embed'}, 'missing .*backbone.pos_embed'),
        (lambda s: s | {f'{BLOCK}.att.time_maa': torch.ones(1)}, f'unexpected {BLOCK}.att.time_maa'),
        (
            lambda s: s | {f'{BLOCK}.ffn.key.weight': torch.ones(2, 2)},
            r'ffn.key.weight: \(2, 2\) in the file',
        ),
        (lambda s: s | {'module.head.fc.bias': torch.ones(7)}, 'head.fc.bias is there twice'),
        (lambda s: s | {'backbone.out_norms.2.bias': torch.ones(16)}, 'unexpected backbone.out_norms'),
    ],
)
def test_damaged_weights_are_refused(damage, message):
    with pytest.raises(InputError, match=message) as error:
        to_mmvisiongru(damage(released_state('post')))
    assert '\n' not in str(error.value)


def test_output_norms_have_no_released_form():
    with torch.device('meta'):
        model = VRWKV(dict(embed_dims=8, depth=1), out_norm_cfg=dict(type='LN'))
    state = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=r'unexpected backbone\.out_norms'):
        to_released(state)
