"""Four paths: rows and columns, each in both directions (Algorithm 1)."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(scan_paths=('row', 'row_reverse', 'column', 'column_reverse')))
