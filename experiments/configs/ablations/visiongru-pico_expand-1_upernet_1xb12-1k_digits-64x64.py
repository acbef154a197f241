"""A scan as wide as its stage."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'

model = dict(backbone=dict(expand_ratio=1))
