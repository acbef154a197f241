"""A scan as wide as its stage."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(expand_ratio=1))
