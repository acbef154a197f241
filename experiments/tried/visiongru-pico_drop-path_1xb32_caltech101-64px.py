"""Stochastic depth."""

_base_ = '../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(drop_path_rate=0.1))
