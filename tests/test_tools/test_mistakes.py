"""Mistakes of a first day: each ends tools/train.py or test.py with one line that names what to set."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmvisiongru.apis import get_model
from tests.harness import ROOT
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, Call, save_weights, write_config
from tools import test as test_tool
from tools import train

# A pyramid pooling as UperNet has it, in place of the head.
UPERNET = """
model = dict(decode_head=dict(
    _delete_=True, type='UPerHead', in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3], pool_scales=(1, 2),
    channels=8, num_classes=3, norm_cfg=dict(type='SyncBN'),
))
"""
AUXILIARY = """
model = dict(auxiliary_head=dict(
    type='FCNHead', in_channels=32, in_index=2, channels=8, num_convs=1, num_classes=3))
"""
FPN = "model = dict(neck=dict(type='FPN', in_channels=[8, 16, 32, 63], out_channels=64, num_outs=4))"
RESIZED = """
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), {}, dict(type='PackSegInputs')]
{}_dataloader = dict(dataset=dict(pipeline=pipeline))
"""
RESIZE = dict(type='Resize', scale=(64, 48), keep_ratio=False)
ONE_CHANNEL = "metainfo = dict(classes=('wall', 'sky'))\n" + '\n'.join(
    f'{name}_dataloader = dict(dataset=dict(metainfo=metainfo))' for name in ('train', 'val', 'test')
)


@pytest.fixture
def work(workplace):
    """A folder with a config and data of each task."""
    write_config(workplace / 'seg.py', SEGMENTATION, 'ade')
    write_config(workplace / 'cls.py', CLASSIFICATION, 'inet', "launcher = 'none'\n")
    return workplace


@pytest.fixture
def mistake(work, refused):
    """Calls a script whose run ends before its first iteration."""

    def call(config: str, *options: str, named, leaf: str = '', script=train, args=()) -> None:
        if leaf:
            Path('leaf.py').write_text(f"_base_ = '{config}'\n{leaf}\n")
        options = ['--cfg-options', *options] if options else []
        line = refused(script, 'leaf.py' if leaf else config, *args, *options)
        assert [part for part in named if part not in line] == []
        assert 'Traceback' not in line
        assert not [*Path().rglob('scalars.json'), *Path('work_dirs').rglob('*.pth')]

    return call


@pytest.mark.parametrize(
    ('config', 'option', 'named'),
    [
        # Numbers of classes and channels. A head with a class too many trains: no label asks for it.
        ('seg.py', 'model.decode_head.num_classes=4', ['set model.decode_head.num_classes=3']),
        ('cls.py', 'model.head.num_classes=3', ['train_dataloader.dataset', 'set model.head.num_classes=2']),
        ('cls.py', 'data_preprocessor.num_classes=1', ['set data_preprocessor.num_classes=2']),
        ('cls.py', 'model.head.in_channels=768', ['in cls.py', 'set model.head.in_channels=16']),
        ('seg.py', 'model.decode_head.in_index=4', ['model.decode_head.in_index', 'out_indices']),
        ('cls.py', 'val_evaluator.topk=(1,5)', ['val_evaluator.0.topk', '2 classes']),
        ('seg.py', 'model.backbone.out_indices=7', ['seg.py', 'out_indices', '7']),
        # Types.
        ('seg.py', 'model.backbone.type=mmvisiongru.VisonGRU', ["did you mean 'mmvisiongru.VisionGRU'"]),
        ('seg.py', 'model.decode_head.type=mmvisiongru.UperHead', ["did you mean 'mmvisiongru.UPerHead'"]),
        ('cls.py', 'train_cfg.type=EpochBasedTrainLoop', ['cls.py', 'by_epoch']),
        ('seg.py', 'default_hooks.stall.timeout=0', ['seg.py', 'timeout', '0']),
        ('seg.py', 'model.backbone.type=nowhere.VisionGRU', ['model.backbone.type', 'is nowhere installed']),
        ('seg.py', 'model.decode_head.norm_cfg.type=BNN', ['decode_head.norm_cfg.type', "'BN'"]),
        ('seg.py', 'optim_wrapper.optimizer.type=Adamm', ['optim_wrapper.optimizer.type', "'Adam'"]),
        # Arguments.
        ('cls.py', 'model.backbone.droppath_rate=0.1', ['model.backbone', "'drop_path_rate'"]),
        ('cls.py', 'model.backbone.qkv_bias=1', ['cls.py', "'qkv_bias'"]),
        ('cls.py', 'train_dataloader.dataset.pipeline.1.meta_key=a', ['dataset.pipeline.1', "'meta_keys'"]),
        ('seg.py', 'optim_wrapper.paramwise_cfg.norm_decay_mul=0', ['paramwise_cfg', "'norm_decay_mult'"]),
        ('seg.py', 'optim_wrapper.paramwise_cfg.layer_decay_rate=0.9', ['layer_decay_rate', 'constructor']),
        ('seg.py', 'default_hooks.checkpoint.frequency=5', ['hooks.checkpoint', 'it takes', 'interval']),
        ('seg.py', 'default_hooks.guard.patience=0', ['seg.py', 'patience', '0']),
        ('seg.py', 'train_cfg.val_intervals=5', ['train_cfg', "'val_interval'"]),
        # Keys, data, labels.
        ('cls.py', 'train_dataloader.batch_size=9 train_dataloader.drop_last=True', ['all 8', 'size=9']),
        ('seg.py', 'train_dataloader.dataset.data_root=away', ['dataset.data_root', 'away', 'make_scenes()']),
        ('seg.py', 'train_dataloader.dataset.img_suffix=.tif', ['train_dataloader.dataset in seg', 'suffix']),
        ('seg.py', 'val_dataloader.dataset.img_suffix=.tif', ['val_dataloader.dataset in seg', 'suffix']),
        ('seg.py', 'model.decode_head.ignore_index=0', ['dataset.ignore_index', 'evaluator.0.ignore_index']),
        ('seg.py', 'train_cfg.max_iter=3', ["'max_iter' in train_cfg", 'max_iters']),
        ('seg.py', 'model.test_cfg.mode=gliding', ['model.test_cfg.mode', 'slide']),
        ('seg.py', 'model.test_cfg.mode=slide', ['model.test_cfg.crop_size', 'model.test_cfg.stride']),
    ],
)
def test_a_wrong_setting(work, mistake, config, option, named):
    mistake(config, *option.split(), named=named)


@pytest.mark.parametrize(
    ('leaf', 'named'),
    [
        (AUXILIARY.replace('classes=3', 'classes=9'), ['set model.auxiliary_head.num_classes=3']),
        (FPN, ['in leaf.py', 'set model.neck.in_channels=[8,16,32,64]']),
        (UPERNET.replace('64]', '63]'), ['set model.decode_head.in_channels=[8,16,32,64]']),
        ("optim_wraper = dict(type='OptimWrapper')", ["'optim_wraper'", "'optim_wrapper'"]),
        ("custom_hooks = [dict(type='EMAHook', momentun=0.1)]", ['custom_hooks.0', "'momentum'"]),
        (
            "custom_hooks = [dict(type='EMAHook', ema_type='ExponentialAverage')]",
            ['custom_hooks.0.ema_type', 'MovingAverage'],
        ),
        ("custom_hooks = [dict(typ='EMAHook')]", ['custom_hooks.0 in leaf.py has no type']),
        ("param_scheduler = [dict(type='PolyLR', by_epoch=False, powr=2)]", ['param_scheduler.0', "'power'"]),
        (RESIZED.format(RESIZE, 'val'), ['val_dataloader.dataset.pipeline', 'after Resize']),
        (RESIZED.format(dict(RESIZE, keep_ration=1), 'train'), ['pipeline.2', "'keep_ratio'"]),
        (
            RESIZED.format(dict(type='RandomCrop', crop_size=(24, 24)), 'train'),
            ['set model.data_preprocessor.size=(24, 24)'],
        ),
        # Softmax over one channel is 1, so the loss is 0.
        (
            f'{ONE_CHANNEL}\nmodel = dict(decode_head=dict(num_classes=1))',
            ['model.decode_head', 'out_channels=1', 'threshold', 'use_sigmoid=True'],
        ),
    ],
)
def test_a_wrong_config(work, mistake, leaf, named):
    mistake('seg.py', leaf=leaf, named=named)


@pytest.mark.parametrize(('size', 'to_set'), [(3, 'drop_last=True'), (1, 'train_dataloader.batch_size=2')])
def test_a_batch_of_one_under_a_batch_norm_behind_the_pooling(work, mistake, size, to_set):
    # 7 images.
    next(Path('inet/train').rglob('*.png')).unlink()
    leaf = f"""
train_dataloader = dict(batch_size={size})
model = dict(neck=[dict(type='GlobalAveragePooling'), dict(
    type='LinearNeck', in_channels=16, out_channels=16, norm_cfg=dict(type='BN1d'))])
"""
    mistake('cls.py', leaf=leaf, named=['model.neck', to_set])


def test_a_batch_of_one_without_a_pooling_is_fine(work, mistake):
    one = 'train_dataloader.batch_size=1'
    mistake('seg.py', one, leaf=UPERNET, named=['model.decode_head.norm_cfg'])
    finest = ['model.decode_head.in_index=0', 'model.decode_head.in_channels=8']
    train.main(['seg.py', '--cfg-options', one, *finest])


def test_images_of_several_sizes_in_a_batch(work, mistake):
    for i, path in enumerate(sorted(Path('ade').rglob('training/*.*'))):
        Image.open(path).resize((32 + i % 6, 40)).save(path)
    mistake('seg.py', named=['train_dataloader.dataset.pipeline', 'size'])


def test_another_number_of_folders(work, mistake):
    base = ROOT / 'configs/classification/visiongru-tiny_8xb128_in1k.py'
    roots = [f'{name}_dataloader.dataset.data_root=inet' for name in ('train', 'val')]
    mistake(str(base), *roots, named=['2', '1000'])


@pytest.mark.parametrize('option', ['model.backbone', 'train_dataloader.batch_size=([1,2)'])
def test_a_setting_that_cannot_be_read(work, capsys, option):
    with pytest.raises(SystemExit, match='2'):
        train.main(['seg.py', '--cfg-options', option])
    assert 'argument --cfg-options: must be KEY=VALUE' in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ('script', 'kind', 'named'),
    [
        (train, 'code', ['x.pth', 'mkdir', 'could run code']),
        (train, 'other', ['x.pth (load_from)', 'no key of the model']),
        (train, 'part', ['x.pth (load_from)', 'missing head.fc.weight', 'load_coverage']),
        (train, 'released', ['load_from', 'tools/model_converters/official_to_mmvisiongru.py']),
        (test_tool, 'code', ['x.pth', 'mkdir', 'could run code']),
        (test_tool, 'part', ['x.pth', 'missing head.fc.weight', 'unexpected head.cf.weight']),
    ],
)
def test_a_checkpoint_that_cannot_be_used(work, mistake, script, kind, named):
    weights = get_model('cls.py').state_dict()
    torch.save(
        dict(
            code=dict(weights, x=Call(os.mkdir, 'made')),
            other={'vig.fc': torch.zeros(1)},
            part={key.replace('head.fc.w', 'head.cf.w'): value for key, value in weights.items()},
            released={'_orig_mod.snake_gru.conv0.weight': torch.zeros(8, 4, 3, 3)},
        )[kind],
        'x.pth',
    )
    how = dict(script=script, args=('x.pth',)) if script is test_tool else {}
    mistake('cls.py', *([] if how else ['load_from=x.pth']), named=named, **how)
    assert not Path('made').exists()


@pytest.mark.parametrize(
    ('stored', 'prefix', 'set_to'),
    [('', None, "'backbone.'"), ('', 'head.', "'backbone.'"), ('backbone.', 'backbone.', 'None')],
)
def test_a_pretrained_backbone_under_another_prefix(work, mistake, stored, prefix, set_to):
    weights = get_model('cls.py').state_dict()
    torch.save({k.removeprefix(stored): v for k, v in weights.items() if k.startswith(stored)}, 'x.pth')
    init = dict(type='Pretrained', checkpoint='x.pth', prefix=prefix)
    leaf = f'model = dict(backbone=dict(init_cfg={init}))'
    mistake('cls.py', leaf=leaf, named=[f'model.backbone.init_cfg.prefix={set_to}'])


def test_one_output_channel_and_test_time_augmentation(work, mistake):
    loss = "dict(type='CrossEntropyLoss', use_sigmoid=True)"
    head = f'dict(num_classes=2, out_channels=1, threshold=0.5, loss_decode={loss})'
    leaf = f'{ONE_CHANNEL}\nmodel = dict(decode_head={head})'
    Path('leaf.py').write_text(f"_base_ = 'seg.py'\n{leaf}\n")
    save_weights('leaf.py', 'x.pth')
    how = dict(script=test_tool, args=('x.pth', '--tta'))
    mistake('seg.py', leaf=leaf, named=['--tta', 'model.decode_head'], **how)
