"""VRWKV-S on ImageNet-1k, as the released code trains it."""

_base_ = [
    '../_base_/models/vrwkv_classifier.py',
    '../_base_/datasets/imagenet_bs128_bicubic_224.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e_vrwkv.py',
    '../_base_/runtime/classification.py',
    '../_base_/launchers/none.py',
]

model = dict(backbone=dict(arch='small', drop_path_rate=0.3), head=dict(in_channels=384))
