"""The paper's linear candidate (eq. 8) in place of the released g."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'

model = dict(backbone=dict(candidate='linear'))
