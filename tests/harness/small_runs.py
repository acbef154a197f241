"""Configs and data of runs that take seconds, for the tests of the tools."""

import textwrap
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from tests.harness import ROOT

TOOLS = ROOT / 'tools'

SEGMENTATION = """
    _base_ = ['{root}/configs/_base_/runtime/segmentation.py', '{root}/configs/_base_/launchers/none.py']
    data_hint = 'make it with make_scenes()'
    metainfo = dict(classes=('wall', 'building', 'sky'))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), mean=[127.0] * 3, std=[60.0] * 3),
        backbone=dict(
            type='mmvisiongru.VisionGRU', arch=dict(embed_dims=[8, 16, 32, 64], depths=[1, 1, 1, 1])
        ),
        test_cfg=dict(mode='whole'),
        decode_head=dict(
            type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
    )
    train_dataloader = dict(
        batch_size=2, num_workers=0, persistent_workers=True,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        dataset=dict(
            type='ADE20KDataset', data_root='{data}', pipeline=pipeline, metainfo=metainfo,
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        ),
    )
    val_dataloader = dict(
        batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='ADE20KDataset', data_root='{data}', pipeline=pipeline, metainfo=metainfo,
            data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        ),
    )
    test_dataloader = val_dataloader
    val_evaluator = dict(type='IoUMetric')
    test_evaluator = val_evaluator
    optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    val_cfg = dict(type='ValLoop')
    test_cfg = dict(type='TestLoop')
    default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""

CLASSIFICATION = """
    _base_ = ['{root}/configs/_base_/runtime/classification.py', '{root}/configs/_base_/launchers/pytorch.py']
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    data_preprocessor = dict(num_classes=2, mean=[127.0] * 3, std=[60.0] * 3)
    model = dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmvisiongru.VisionGRU', arch=dict(embed_dims=[8, 16], depths=[1, 1]), out_indices=(1,)
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=2, in_channels=16, topk=(1,)),
    )
    dataset = dict(
        type='ImageNet', data_root='{data}', split='train', pipeline=pipeline,
        metainfo=dict(classes=('a', 'b')),
    )
    train_dataloader = dict(
        batch_size=2, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=True)
    )
    val_dataloader = dict(
        batch_size=2, num_workers=0, dataset=dict(dataset, split='val'),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    test_dataloader = val_dataloader
    val_evaluator = dict(type='Accuracy', topk=(1,))
    test_evaluator = val_evaluator
    optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
    train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
    val_cfg = dict()
    test_cfg = dict()
    default_hooks = dict(logger=dict(interval=1))
"""


def make_scenes(root: Path) -> None:
    """Random images and maps of 32 x 32 in the layout of ADE20K."""
    rng = np.random.default_rng(0)
    for split, number in (('training', 6), ('validation', 3)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(number):
            image, label = rng.integers(0, 256, (32, 32, 3)), rng.integers(0, 4, (32, 32))
            Image.fromarray(image.astype('uint8')).save(root / f'images/{split}/{i}.jpg')
            Image.fromarray(label.astype('uint8')).save(root / f'annotations/{split}/{i}.png')


def make_folders(root: Path) -> None:
    """Random images of 32 x 32 in the layout of ImageNet, two classes."""
    rng = np.random.default_rng(0)
    for split, number in (('train', 4), ('val', 3)):
        for name in 'ab':
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                image = rng.integers(0, 256, (32, 32, 3)).astype('uint8')
                Image.fromarray(image).save(root / split / name / f'{i}.png')


def write_config(path: Path, text: str, data: Path, extra: str = '') -> Path:
    path.write_text(textwrap.dedent(text).format(root=ROOT, data=data) + extra)
    return path


def make_checkpoint(folder: Path, text: str, extra: str) -> None:
    """Data, ``small.py`` and ``small.pth``, of a model that is not what it was initialised as."""
    make = make_scenes if text == SEGMENTATION else make_folders
    make(folder / 'data')
    cfg = Config.fromfile(write_config(folder / 'small.py', text, folder / 'data', extra))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    classes = ('wall', 'building', 'sky') if text == SEGMENTATION else ('a', 'b')
    meta = dict(dataset_meta=dict(classes=classes))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'small.pth')
