"""Misspelt names inside a config."""

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmvisiongru.errors import InputError
from mmvisiongru.launch.names import check_names, unmatched_custom_keys
from tests.harness import ROOT

CONFIGS = ROOT / 'configs'
SEGMENTATION = 'segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'
LEAVES = [str(p.relative_to(CONFIGS)) for p in sorted(CONFIGS.glob('[!_]*/*.py'))]


@pytest.mark.parametrize('name', LEAVES)
def test_our_configs_have_no_unknown_names(name):
    cfg = Config.fromfile(CONFIGS / name)
    check_names(cfg)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (
            {'default_hooks.checkpoint.intervall': 5},
            "unknown key 'intervall' in default_hooks.checkpoint; did you mean 'interval'?",
        ),
        (
            {'default_hooks.guard.patients': 5},
            "unknown key 'patients' in default_hooks.guard; did you mean 'patience'?",
        ),
        (
            {'default_hooks.checkpont': dict(interval=5)},
            "default_hooks.checkpont has no type; did you mean 'checkpoint'?",
        ),
        (
            {'custom_hooks': [dict(type='EarlyStoppingHook', monitor='mIoU', patiance=3)]},
            "unknown key 'patiance' in custom_hooks.0; did you mean 'patience'?",
        ),
        (
            {'optim_wrapper.paramwise_cfg.norm_decay_mul': 0.0},
            "unknown key 'norm_decay_mul' in optim_wrapper.paramwise_cfg; did you mean 'norm_decay_mult'?",
        ),
        (
            {'optim_wrapper.paramwise_cfg.custom_keys.head': dict(lr_mul=10.0)},
            "unknown key 'lr_mul' in optim_wrapper.paramwise_cfg.custom_keys.head; did you mean 'lr_mult'?",
        ),
        (
            {'model.test_cfg': dict(mode='slide', crop_size=(64, 64), strides=(32, 32))},
            "unknown key 'strides' in model.test_cfg; did you mean 'stride'?",
        ),
        (
            {'train_cfg.val_intervals': 5},
            "unknown key 'val_intervals' in train_cfg; did you mean 'val_interval'?",
        ),
        (
            {'custom_hooks': [dict(type='EMAHook', momentun=0.1)]},
            "unknown key 'momentun' in custom_hooks.0; did you mean 'momentum'?",
        ),
        ({'custom_hooks': [dict(typ='EMAHook')]}, "custom_hooks.0 has no type: {'typ': 'EMAHook'}"),
        (
            {'model.data_preprocessor.test_cfg': dict(size_divsor=32)},
            "unknown key 'size_divsor' in model.data_preprocessor.test_cfg; did you mean 'size_divisor'?",
        ),
        (
            {'env_cfg.cudnn_benchmrk': True},
            "unknown key 'cudnn_benchmrk' in env_cfg; did you mean 'cudnn_benchmark'?",
        ),
        ({'auto_scale_lr.enabel': True}, "unknown key 'enabel' in auto_scale_lr; did you mean 'enable'?"),
        (
            {
                'optim_wrapper.constructor': 'mmengine.DefaultOptimWrapperConstructor',
                'optim_wrapper.paramwise_cfg.norm_decay': 0.0,
            },
            "unknown key 'norm_decay' in optim_wrapper.paramwise_cfg; did you mean 'norm_decay_mult'?",
        ),
        ({'test_cfg.fp61': True}, "unknown key 'fp61' in test_cfg; did you mean 'fp16'?"),
    ],
)
def test_misspelt_name_is_reported_with_the_nearest(setting, message):
    cfg = Config.fromfile(CONFIGS / SEGMENTATION)
    cfg.merge_from_dict(setting)
    with pytest.raises(InputError) as error:
        check_names(cfg)
    assert str(error.value) == message
    assert not DefaultScope._instance_dict


def test_custom_keys_that_match_nothing():
    head = nn.ModuleDict(dict(conv=nn.Linear(1, 1)))
    model = nn.ModuleDict(dict(backbone=nn.Linear(1, 1), decode_head=head))
    # A part that other models of the class have.
    head.pos_embed = None
    keys = ['pos_embed', 'decode_head', 'decode_haed', 'backbone.bias', 'decode_head.con', 'xyz']
    custom = {key: dict(lr_mult=2.0) for key in keys}
    cfg = Config(dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys=custom))))
    nowhere = 'of paramwise_cfg is in the name of no parameter'
    assert list(unmatched_custom_keys(cfg, model)) == [
        f"custom_keys 'decode_haed' {nowhere}; did you mean 'decode_head'?",
        f"custom_keys 'xyz' {nowhere}",
    ]
