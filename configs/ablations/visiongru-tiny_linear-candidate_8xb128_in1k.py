"""The paper's linear candidate (eq. 8) in place of the released g."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(backbone=dict(candidate='linear'))
