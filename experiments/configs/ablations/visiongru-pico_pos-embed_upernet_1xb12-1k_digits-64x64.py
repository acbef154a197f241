"""The positional embedding that the paper's text adds after the stem."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'

model = dict(backbone=dict(pos_embed='absolute'))
