"""Four paths: rows and columns, each in both directions (Algorithm 1)."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'

model = dict(backbone=dict(scan_paths=('row', 'row_reverse', 'column', 'column_reverse')))
