"""VRWKV-T on ImageNet-1k, as the released code trains it."""

_base_ = [
    '../_base_/models/vrwkv_classifier.py',
    '../_base_/datasets/imagenet_bs128_bicubic_224.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e_vrwkv.py',
    '../_base_/runtime/classification.py',
    '../_base_/launchers/none.py',
]

# No Mixup and CutMix, as released.
model = dict(train_cfg=None)
