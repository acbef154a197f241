"""VisionGRU-pico on handwritten digits: a minute on two CPU cores."""

_base_ = [
    '../_base_/models/visiongru_classifier.py',
    '../_base_/datasets/digits_cls.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e.py',
    '../_base_/runtime/classification.py',
    '../_base_/launchers/none.py',
]

model = dict(
    backbone=dict(arch='pico'),
    head=dict(num_classes=10, in_channels=192),
    # No Mixup and CutMix: they pay in long training.
    train_cfg=None,
)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=3, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=3, convert_to_iter_based=True),
]
custom_hooks = []
train_cfg = dict(max_epochs=20, val_interval=5)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=64)
