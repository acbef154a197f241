"""A LayerNorm on the last map."""

_base_ = '../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(backbone=dict(out_norm_cfg=dict(type='LN')))
