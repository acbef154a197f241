"""VisionGRU-base on ImageNet-1k, in the practice of DeiT and Swin."""

_base_ = [
    '../_base_/models/visiongru_classifier.py',
    '../_base_/datasets/imagenet_bs128_bicubic_224.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e.py',
    '../_base_/runtime/classification.py',
    '../_base_/launchers/none.py',
]

model = dict(backbone=dict(arch='base'), head=dict(in_channels=832))
