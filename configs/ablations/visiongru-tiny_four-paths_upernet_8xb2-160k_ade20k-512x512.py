"""Four paths: rows and columns, each in both directions (Algorithm 1)."""

_base_ = '../segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(scan_paths=('row', 'row_reverse', 'column', 'column_reverse')))
