"""VisionGRU-pico on 200 classes of Tiny-ImageNet at 64 x 64, from scratch: an hour on one CPU core."""

_base_ = [
    '../_base_/models/visiongru_classifier.py',
    '../_base_/datasets/folders_cls.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e.py',
    '../_base_/runtime/classification.py',
    '../_base_/launchers/none.py',
]

data_root = 'data/tiny-imagenet'
data_preprocessor = dict(num_classes=200)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.25, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
# The images are 64 x 64 as they are.
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=100, num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 5))
test_evaluator = val_evaluator

model = dict(
    backbone=dict(arch='pico'),
    head=dict(num_classes=200, in_channels=192),
    train_cfg=None,
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=1, convert_to_iter_based=True),
]
custom_hooks = []
train_cfg = dict(max_epochs=12, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=32)
