"""VRWKV of the size of VisionGRU-pico on Tiny-ImageNet; patches of 8, at its own FLOPs."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_tiny-imagenet-64px.py'

model = dict(
    backbone=dict(_delete_=True, type='mmvisiongru.VRWKV', arch='pico', img_size=64, patch_size=8),
    head=dict(in_channels=96),
)
