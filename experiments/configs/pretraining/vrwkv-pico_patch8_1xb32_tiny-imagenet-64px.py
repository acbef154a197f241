"""VRWKV of the size of VisionGRU-pico on Tiny-ImageNet; patches of 8, at its own FLOPs."""

_base_ = '../../../configs/classification/vrwkv-pico_1xb32_tiny-imagenet-64px.py'

model = dict(backbone=dict(patch_size=8))
