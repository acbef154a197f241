"""Stochastic depth."""

_base_ = '../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(backbone=dict(drop_path_rate=0.1))
