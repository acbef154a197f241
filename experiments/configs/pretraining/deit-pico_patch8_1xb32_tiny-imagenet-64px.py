"""DeiT-pico with patches of 8 on Tiny-ImageNet, its tokens averaged, at its own FLOPs."""

_base_ = 'deit-pico_1xb32_tiny-imagenet-64px.py'

model = dict(backbone=dict(patch_size=8))
