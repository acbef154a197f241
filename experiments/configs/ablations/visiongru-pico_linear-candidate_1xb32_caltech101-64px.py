"""The paper's linear candidate (eq. 8) in place of the released g."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(candidate='linear'))
