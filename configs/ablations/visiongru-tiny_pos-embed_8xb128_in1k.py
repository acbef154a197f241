"""The positional embedding that the paper's text adds after the stem."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(backbone=dict(pos_embed='absolute'))
