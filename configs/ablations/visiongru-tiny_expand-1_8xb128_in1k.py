"""A scan as wide as its stage."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(backbone=dict(expand_ratio=1))
