"""Four paths: rows and columns, each in both directions (Algorithm 1)."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(backbone=dict(scan_paths=('row', 'row_reverse', 'column', 'column_reverse')))
