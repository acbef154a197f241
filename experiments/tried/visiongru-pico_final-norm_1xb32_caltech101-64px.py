"""A LayerNorm on the last map."""

_base_ = '../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(out_norm_cfg=dict(type='LN')))
