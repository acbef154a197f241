"""VisionGRU-pico with the linear candidate of the paper's text on Tiny-ImageNet."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_tiny-imagenet-64px.py'

model = dict(backbone=dict(candidate='linear'))
# The best of three on held-out training images of 50 classes.
optim_wrapper = dict(optimizer=dict(lr=2e-3))
