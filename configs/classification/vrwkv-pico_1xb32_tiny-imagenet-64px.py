"""VRWKV of the size and FLOPs of VisionGRU-pico on Tiny-ImageNet, with 12 patches as DeiT of that size."""

_base_ = 'visiongru-pico_1xb32_tiny-imagenet-64px.py'

model = dict(
    backbone=dict(_delete_=True, type='mmvisiongru.VRWKV', arch='pico', img_size=64, patch_size=(16, 22)),
    head=dict(in_channels=96),
)

# The best of three on held-out training images of 50 classes.
optim_wrapper = dict(optimizer=dict(lr=2e-3))
