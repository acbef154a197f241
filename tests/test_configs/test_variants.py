"""Configs that are another one but for what their names say: variants, ablations, and other backbones."""

import functools
import re

import pytest
import torch

from mmvisiongru.zoo import build_model as build_by_name
from mmvisiongru.zoo import model_config
from tests.harness.config_builders import (
    CLASSIFIER,
    CONFIGS,
    EXPERIMENTS,
    LEAVES,
    RELEASED,
    UPERNET,
    build_model,
    difference,
    load,
)
from tools.analysis_tools.flops import count, image_size

PARENTS = (
    CLASSIFIER,
    UPERNET,
    'classification/visiongru-pico_1xb32_caltech101-64px.py',
    'segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py',
    'segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py',
)


def configs(folder):
    """Those of this folder, and those of the folder of this name in experiments/."""
    small = sorted((CONFIGS / EXPERIMENTS / folder).glob('*.py'))
    return [
        *(name for name in LEAVES if name.startswith(f'{folder}/')),
        *(f'{EXPERIMENTS}/{folder}/{path.name}' for path in small),
    ]


def parent(name):
    """The recipe whose name ends as that of a config, behind the backbone or the ablation."""
    return next(p for p in PARENTS if name.endswith(p.partition('_')[2]))


# ---- variants

AMP = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16',
       'optim_wrapper.loss_scale': 1.0, 'channels_last': True}  # fmt: skip
COMPILE = {'compile.fullgraph': True}
# What a variant has in its name in place of words of its parent's, and all that it changes.
VARIANTS = [
    (UPERNET, '.py', '_slurm.py', {'launcher': 'slurm'}),
    (UPERNET, '160k', '80k', {'train_cfg.max_iters': 80000}),
    (UPERNET, '.py', '_layer-decay.py', {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.9}),
]
for SIZE in ('tiny', 'base'):
    upernet, classifier, released = (name.replace('tiny', SIZE) for name in (UPERNET, CLASSIFIER, RELEASED))
    VARIANTS += [(upernet, '160k', 'amp-160k', AMP)]
    VARIANTS += [(name, '8xb128', '8xb128-amp', AMP) for name in (classifier, released)]
    VARIANTS += [(upernet.replace('160k', 'amp-160k'), 'amp', 'amp-compile', COMPILE)]
    VARIANTS += [(classifier.replace('8xb128', '8xb128-amp'), 'amp', 'amp-compile', COMPILE)]


@pytest.mark.parametrize(('parent', 'old', 'new', 'changes'), VARIANTS)
def test_variant_changes_what_its_name_says_alone(parent, old, new, changes):
    assert difference(parent.replace(old, new), parent) == changes


@pytest.mark.parametrize('name', [CLASSIFIER, RELEASED, UPERNET])
def test_base_is_tiny_with_another_backbone_and_its_widths(name):
    changed = difference(name.replace('tiny', 'base'), name)
    assert {key for key in changed if not key.endswith('in_channels')} == {'model.backbone.arch'}


def test_tta_variant_is_the_parent_wrapped():
    parent, tta = load(UPERNET), load(UPERNET.replace('.py', '_tta.py'))
    assert tta.model.to_dict() == dict(type='SegTTAModel', module=parent.model.to_dict())
    assert tta.test_dataloader.dataset.pipeline == parent.tta_pipeline
    # A runner refuses to train it in one line instead of failing in the first iteration.
    keys = [f'{kind}_{part}' for kind in ('train', 'val') for part in ('cfg', 'dataloader')]
    assert {tta[key] for key in (*keys, 'optim_wrapper', 'val_evaluator')} == {None}


# ---- ablations

# The key and its value.
ABLATIONS = {
    'one-path': ('scan_paths', ('row',)),
    'two-paths': ('scan_paths', ('row', 'row_reverse')),
    'four-paths': ('scan_paths', ('row', 'row_reverse', 'column', 'column_reverse')),
    'no-dwconv': ('dwconv_kernel_size', None),
    'linear-candidate': ('candidate', 'linear'),
    'pos-embed': ('pos_embed', 'absolute'),
    'expand-1': ('expand_ratio', 1),
}


@pytest.mark.parametrize('name', configs('ablations'))
def test_ablation_is_one_key(name):
    key, value = ABLATIONS[name.split('_')[1]]
    assert difference(name, parent(name)) == {f'model.backbone.{key}': value}


# ---- other backbones

# Of mmpretrain, so that this project has no copy that could be worse than the original; it has no VRWKV.
CLASSES = dict(swin='SwinTransformer', convnext='ConvNeXt', deit='VisionTransformer', vrwkv='VRWKV')
# What follows from it: the widths that heads read, a pyramid where it has none, and what does not decay.
FOLLOWS = r'model\.(backbone\.|(head|decode_head|auxiliary_head)\.in_channels$|neck)|.*\.relative_position'
PEERS = configs('peers')


def kind(name):
    return name.split('/')[-1].split('-')[0]


@pytest.mark.parametrize('name', PEERS)
def test_backbone_is_the_only_difference(name):
    changed = difference(name, parent(name))
    assert 'model.backbone.type' in changed
    assert not [key for key in changed if not re.match(FOLLOWS, key)]
    # One map at one scale: UperNet needs a neck that makes a pyramid of it.
    plain = kind(name) in ('deit', 'vrwkv') and 'upernet' in name
    assert any(key.startswith('model.neck') for key in changed) is plain


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


@pytest.mark.parametrize('name', [name for name in PEERS if EXPERIMENTS in name])
def test_small_peer_has_the_size_of_visiongru(name):
    found, of_visiongru = counted(name), counted(parent(name))
    assert found['parameters'] == pytest.approx(of_visiongru['parameters'], rel=0.05)
    assert found['macs'] == pytest.approx(of_visiongru['macs'], rel=0.15)
