"""Configs and data of runs that take seconds, for the tests of the tools."""

import textwrap
from pathlib import Path

import numpy as np
import torch
from mmengine.model import BaseModel
from PIL import Image

from mmvisiongru.apis import get_model
from tests.harness import ROOT, need_mmseg

TOOLS = ROOT / 'tools'

SEGMENTATION = """
    _base_ = ['{root}/configs/_base_/runtime/segmentation.py', '{root}/configs/_base_/launchers/none.py']
    data_hint = 'make it with make_scenes()'
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), mean=[127.0] * 3, std=[60.0] * 3),
        backbone=dict(type='mmvisiongru.VisionGRU', arch=dict(embed_dims=[8, 16, 32, 64], depths=[1] * 4)),
        test_cfg=dict(mode='whole'),
        decode_head=dict(
            type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
    )
    dataset = dict(
        type='ADE20KDataset', data_root='{data}', pipeline=pipeline,
        metainfo=dict(classes=('wall', 'building', 'sky')),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    )
    train_dataloader = dict(
        batch_size=2, num_workers=0, persistent_workers=True, dataset=dataset,
        sampler=dict(type='InfiniteSampler', shuffle=True),
    )
    val_prefix = dict(img_path='images/validation', seg_map_path='annotations/validation')
    val_dataloader = dict(
        batch_size=1, num_workers=0, dataset=dict(dataset, data_prefix=val_prefix),
        sampler=dict(type='DefaultSampler', shuffle=False),
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


class Call:
    """Pickles as the result of a call."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def save(path: str | Path, values, **options) -> None:
    """Write an image of 8 bits, and the folders above it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **options)


def files(folder: str | Path) -> dict[str, bytes]:
    """Content of all files in a folder by their path in it."""
    paths = sorted(p for p in Path(folder).rglob('*') if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def make_scenes(root: Path) -> None:
    """Random images and maps of 32 x 32 in the layout of ADE20K."""
    rng = np.random.default_rng(0)
    for split, number in (('training', 6), ('validation', 3)):
        for i in range(number):
            save(root / f'images/{split}/{i}.jpg', rng.integers(0, 256, (32, 32, 3)))
            save(root / f'annotations/{split}/{i}.png', rng.integers(0, 4, (32, 32)))


def make_folders(root: Path) -> None:
    """Random images of 32 x 32 in the layout of ImageNet, two classes."""
    rng = np.random.default_rng(0)
    for split, number in (('train', 4), ('val', 3)):
        for name in 'ab':
            for i in range(number):
                save(root / split / name / f'{i}.png', rng.integers(0, 256, (32, 32, 3)))


def write_config(path: Path, text: str, data: Path, extra: str = '') -> Path:
    if 'EncoderDecoder' in text:
        need_mmseg()
    path.write_text(textwrap.dedent(text).format(root=ROOT, data=data) + extra)
    return path


def save_weights(config: str | Path, path: str | Path, noise: float = 0, **meta) -> BaseModel:
    """A checkpoint of random weights for a config, with noise on what is initialised; gives the model."""
    torch.manual_seed(0)
    model = get_model(str(config))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn_like(p))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return model


def make_checkpoint(folder: Path, text: str, extra: str = '') -> BaseModel:
    """Data, ``small.py`` and ``small.pth``, of a model that is not what it was initialised as."""
    (make_scenes if text == SEGMENTATION else make_folders)(folder / 'data')
    config = write_config(folder / 'small.py', text, folder / 'data', extra)
    return save_weights(config, folder / 'small.pth', noise=0.05)
