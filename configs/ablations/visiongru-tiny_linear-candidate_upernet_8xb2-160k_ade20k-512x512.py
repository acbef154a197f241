"""The paper's linear candidate (eq. 8) in place of the released g."""

_base_ = '../segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(candidate='linear'))
