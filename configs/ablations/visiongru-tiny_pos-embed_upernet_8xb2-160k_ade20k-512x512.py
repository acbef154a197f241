"""The positional embedding that the paper's text adds after the stem."""

_base_ = '../segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(pos_embed='absolute'))
