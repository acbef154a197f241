"""Mistakes of a first day: each ends tools/train.py or test.py with one line that names what to set."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmvisiongru.apis import get_model
from tests.harness import ROOT
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, write_config
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


def mistake(capsys, config: str, *options: str, leaf: str = '', script=train, args=()) -> str:
    """The one line that ends a run before its first iteration."""
    if leaf:
        Path('leaf.py').write_text(f"_base_ = '{config}'\n{leaf}\n")
    options = ['--cfg-options', *options] if options else []
    with pytest.raises(SystemExit, match='2'):
        script.main(['leaf.py' if leaf else config, *args, *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')
    assert 'Traceback' not in line
    assert not list(Path().rglob('scalars.json'))
    assert not list(Path('work_dirs').rglob('*.pth'))
    return line


def save_weights(config: str, path: str, prefix: str = '', **rename: str) -> dict:
    """A checkpoint of the model of a config, or of the part of it that a prefix names."""
    state = get_model(config).state_dict()
    state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    for old, new in rename.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    ('config', 'option', 'named'),
    [
        # Numbers of classes and channels. A head with a class too many trains: no label asks for it.
        ('seg.py', 'model.decode_head.num_classes=4', ['set model.decode_head.num_classes=3']),
        ('cls.py', 'model.head.num_classes=3', ['train_dataloader.dataset', 'set model.head.num_classes=2']),
        ('cls.py', 'data_preprocessor.num_classes=1', ['set data_preprocessor.num_classes=2']),
        ('cls.py', 'model.head.in_channels=768', ['in cls.py', 'set model.head.in_channels=16']),
        ('seg.py', 'model.decode_head.in_channels=768', ['set model.decode_head.in_channels=64']),
        ('seg.py', 'model.decode_head.in_index=4', ['model.decode_head.in_index', 'out_indices']),
        ('cls.py', 'val_evaluator.topk=(1,5)', ['val_evaluator.0.topk', '2 classes']),
        ('seg.py', 'model.backbone.out_indices=7', ['seg.py', 'out_indices', '7']),
        # Types.
        ('seg.py', 'model.backbone.type=mmvisiongru.VisonGRU', ["did you mean 'mmvisiongru.VisionGRU'"]),
        ('seg.py', 'model.decode_head.type=mmvisiongru.UperHead', ["did you mean 'mmvisiongru.UPerHead'"]),
        ('seg.py', 'model.backbone.type=nowhere.VisionGRU', ['model.backbone.type', 'is nowhere installed']),
        ('seg.py', 'model.decode_head.norm_cfg.type=BNN', ['decode_head.norm_cfg.type', "'BN'"]),
        ('seg.py', 'visualizer.type=A', ['seg.py', 'A is not in the']),
        ('seg.py', 'optim_wrapper.optimizer.type=Adamm', ['optim_wrapper.optimizer.type', "'Adam'"]),
        ('seg.py', 'train_dataloader.sampler.type=InfinitSampler', ['sampler.type', "'InfiniteSampler'"]),
        ('seg.py', 'val_evaluator.type=IoUMetrics', ['val_evaluator.type', "'IoUMetric'"]),
        # Arguments.
        ('cls.py', 'model.backbone.droppath_rate=0.1', ['model.backbone', "'drop_path_rate'"]),
        ('cls.py', 'model.backbone.qkv_bias=1', ['cls.py', "'qkv_bias'"]),
        ('cls.py', 'model.head.topkk=(1,)', ['model.head', "'topk'"]),
        ('cls.py', 'train_dataloader.dataset.pipeline.1.meta_key=a', ['dataset.pipeline.1', "'meta_keys'"]),
        ('cls.py', 'val_dataloader.dataset.data_rot=inet', ['val_dataloader.dataset', "'data_root'"]),
        ('seg.py', 'val_dataloader.dataset.colour=1', ['seg.py', "'colour'"]),
        ('seg.py', 'train_dataloader.dataset.img_sufix=.png', ['train_dataloader.dataset', "'img_suffix'"]),
        ('seg.py', 'train_dataloader.num_worker=1', ['train_dataloader', "'num_workers'"]),
        ('seg.py', 'optim_wrapper.optimizer.weight_deca=0', ['optim_wrapper.optimizer', "'weight_decay'"]),
        ('seg.py', 'optim_wrapper.paramwise_cfg.norm_decay_mul=0', ['paramwise_cfg', "'norm_decay_mult'"]),
        ('seg.py', 'optim_wrapper.paramwise_cfg.layer_decay_rate=0.9', ['layer_decay_rate', 'constructor']),
        ('seg.py', 'default_hooks.checkpoint.frequency=5', ['hooks.checkpoint', 'it takes', 'interval']),
        ('seg.py', 'default_hooks.guard.patience=0', ['seg.py', 'patience', '0']),
        ('seg.py', 'default_hooks.checkpont.interval=5', ['default_hooks.checkpont', "'checkpoint'"]),
        ('seg.py', 'train_cfg.val_intervals=5', ['train_cfg', "'val_interval'"]),
        # Keys, data, labels.
        ('seg.py', 'train_dataloader.dataset.data_root=away', ['dataset.data_root', 'away', 'make_scenes()']),
        ('seg.py', 'train_dataloader.dataset.img_suffix=.tif', ['seg.py', 'without samples', 'suffixes']),
        (
            'seg.py',
            'model.decode_head.ignore_index=0',
            [f'{p}.ignore_index=255' for p in ('train_dataloader.dataset', 'val_evaluator.0')],
        ),
        ('seg.py', 'model.test_cfg.mode=slide', ['model.test_cfg.crop_size', 'model.test_cfg.stride']),
    ],
)
def test_a_wrong_setting(work, capsys, config, option, named):
    line = mistake(capsys, config, option)
    assert [part for part in named if part not in line] == []


@pytest.mark.parametrize(
    ('config', 'leaf', 'named'),
    [
        ('seg.py', AUXILIARY.replace('classes=3', 'classes=9'), ['set model.auxiliary_head.num_classes=3']),
        ('seg.py', AUXILIARY.replace('=32', '=8'), ['set model.auxiliary_head.in_channels=32']),
        ('seg.py', FPN, ['in leaf.py', 'set model.neck.in_channels=[8,16,32,64]']),
        ('seg.py', UPERNET.replace('64]', '63]'), ['set model.decode_head.in_channels=[8,16,32,64]']),
        ('seg.py', "optim_wraper = dict(type='OptimWrapper')", ["'optim_wraper'", "'optim_wrapper'"]),
        ('seg.py', "custom_hooks = [dict(type='EMAHook', momentun=0.1)]", ['custom_hooks.0', "'momentum'"]),
        (
            'seg.py',
            "custom_hooks = [dict(type='EMAHook', ema_type='ExponentialAverage')]",
            ['custom_hooks.0.ema_type', 'MovingAverage'],
        ),
        ('seg.py', "custom_hooks = [dict(typ='EMAHook')]", ['custom_hooks.0 in leaf.py has no type']),
        (
            'seg.py',
            "param_scheduler = [dict(type='PolyLR', by_epoch=False, powr=2)]",
            ['param_scheduler.0', "'power'"],
        ),
        ('seg.py', RESIZED.format(RESIZE, 'val'), ['val_dataloader.dataset.pipeline', 'after Resize']),
        ('seg.py', RESIZED.format(dict(RESIZE, keep_ration=1), 'train'), ['pipeline.2', "'keep_ratio'"]),
        (
            'seg.py',
            RESIZED.format(dict(type='RandomCrop', crop_size=(24, 24)), 'train'),
            ['set model.data_preprocessor.size=(24, 24)'],
        ),
        # Softmax over one channel is 1, so the loss is 0.
        (
            'seg.py',
            f'{ONE_CHANNEL}\nmodel = dict(decode_head=dict(num_classes=1))',
            ['model.decode_head', 'out_channels=1', 'threshold', 'use_sigmoid=True'],
        ),
        ('cls.py', 'train_dataloader = dict(batch_size=3)', ['model.neck', 'drop_last=True']),
        ('cls.py', 'train_dataloader = dict(batch_size=1)', ['model.neck', 'train_dataloader.batch_size=2']),
    ],
)
def test_a_wrong_config(work, capsys, config, leaf, named):
    if 'batch_size' in leaf:
        # 7 images, and a batch norm behind the pooling.
        next(Path('inet/train').rglob('*.png')).unlink()
        leaf += """
model = dict(neck=[dict(type='GlobalAveragePooling'), dict(
    type='LinearNeck', in_channels=16, out_channels=16, norm_cfg=dict(type='BN1d'))])
"""
    line = mistake(capsys, config, leaf=leaf)
    assert [part for part in named if part not in line] == []


def test_a_batch_of_one_without_a_pooling_is_fine(work, capsys):
    line = mistake(capsys, 'seg.py', 'train_dataloader.batch_size=1', leaf=UPERNET)
    assert 'model.decode_head.norm_cfg' in line
    finest = ['model.decode_head.in_index=0', 'model.decode_head.in_channels=8']
    train.main(['seg.py', '--cfg-options', 'train_dataloader.batch_size=1', *finest])


def test_images_of_several_sizes_in_a_batch(work, capsys):
    for i, path in enumerate(sorted(Path('ade').rglob('training/*.*'))):
        Image.open(path).resize((32 + i % 6, 40)).save(path)
    line = mistake(capsys, 'seg.py')
    assert 'train_dataloader.dataset.pipeline' in line
    assert 'size' in line


def test_another_number_of_folders(work, capsys):
    base = ROOT / 'configs/classification/visiongru-tiny_8xb128_in1k.py'
    line = mistake(capsys, str(base), *[f'{n}_dataloader.dataset.data_root=inet' for n in ('train', 'val')])
    assert '2' in line
    assert '1000' in line


def test_a_part_of_a_config_and_a_misspelt_file(work, capsys):
    (work / 'part.py').write_text('a = 1\n')
    assert 'train_dataloader' in mistake(capsys, 'part.py')
    assert 'did you mean seg.py' in mistake(capsys, 'sag.py')


@pytest.mark.parametrize('option', ['model.backbone', 'train_dataloader.batch_size=([1,2)'])
def test_a_setting_that_cannot_be_read(work, capsys, option):
    with pytest.raises(SystemExit, match='2'):
        train.main(['seg.py', '--cfg-options', option])
    assert 'argument --cfg-options: must be KEY=VALUE' in capsys.readouterr().err.splitlines()[-1]


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('made',)


@pytest.mark.parametrize(
    ('script', 'kind', 'named'),
    [
        (train, 'missing', ['none.pth', 'does not exist']),
        (train, 'text', ['x.pth', 'not a readable checkpoint']),
        (train, 'code', ['x.pth', 'mkdir', 'could run code']),
        (train, 'other', ['x.pth (load_from)', 'no key of the model']),
        (train, 'part', ['x.pth (load_from)', 'missing head.fc.weight', 'load_coverage']),
        (train, 'released', ['load_from', 'tools/model_converters/official_to_mmvisiongru.py']),
        (test_tool, 'missing', ['none.pth', 'does not exist']),
        (test_tool, 'text', ['x.pth', 'not a readable checkpoint']),
        (test_tool, 'code', ['x.pth', 'mkdir', 'could run code']),
        (test_tool, 'other', ['x.pth', 'no key of the model']),
        (test_tool, 'part', ['x.pth', 'missing head.fc.weight', 'unexpected head.cf.weight']),
    ],
)
def test_a_checkpoint_that_cannot_be_used(work, capsys, script, kind, named):
    weights = save_weights('cls.py', 'x.pth', **({'head.fc.w': 'head.cf.w'} if kind == 'part' else {}))
    if kind == 'text':
        Path('x.pth').write_text('not a checkpoint')
    elif kind != 'part':
        faults = dict(code=dict(weights, x=MakesFolder()), other={'vig.fc': torch.zeros(1)})
        faults['released'] = {'_orig_mod.snake_gru.conv0.weight': torch.zeros(8, 4, 3, 3)}
        torch.save(faults.get(kind, weights), 'x.pth')
    path = 'none.pth' if kind == 'missing' else 'x.pth'
    if script is train:
        line = mistake(capsys, 'cls.py', f'load_from={path}')
    else:
        line = mistake(capsys, 'cls.py', script=test_tool, args=(path,))
    assert [part for part in named if part not in line] == []
    assert not Path('made').exists()


@pytest.mark.parametrize(
    ('stored', 'prefix', 'set_to'),
    [('', None, "'backbone.'"), ('', 'head.', "'backbone.'"), ('backbone.', 'backbone.', 'None')],
)
def test_a_pretrained_backbone_under_another_prefix(work, capsys, stored, prefix, set_to):
    save_weights('cls.py', 'x.pth', stored)
    init = dict(type='Pretrained', checkpoint='x.pth', prefix=prefix)
    line = mistake(capsys, 'cls.py', leaf=f'model = dict(backbone=dict(init_cfg={init}))')
    assert f'model.backbone.init_cfg.prefix={set_to}' in line


def test_one_output_channel_and_test_time_augmentation(work, capsys):
    loss = "dict(type='CrossEntropyLoss', use_sigmoid=True)"
    head = f'dict(num_classes=2, out_channels=1, threshold=0.5, loss_decode={loss})'
    leaf = f'{ONE_CHANNEL}\nmodel = dict(decode_head={head})'
    Path('leaf.py').write_text(f"_base_ = 'seg.py'\n{leaf}\n")
    save_weights('leaf.py', 'x.pth')
    line = mistake(capsys, 'seg.py', leaf=leaf, script=test_tool, args=('x.pth', '--tta'))
    assert '--tta' in line
    assert 'model.decode_head' in line
    test_tool.main(['leaf.py', 'x.pth'])
    assert 'acc_seg is the share of background' in max(Path('work_dirs/leaf').glob('*/*.log')).read_text()
