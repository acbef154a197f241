"""The positional embedding that the paper's text adds after the stem."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(pos_embed='absolute'))
