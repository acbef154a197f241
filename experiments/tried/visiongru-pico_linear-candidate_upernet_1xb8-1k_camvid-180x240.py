"""The paper's linear candidate (eq. 8) in place of the released g."""

_base_ = '../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(backbone=dict(candidate='linear'))
