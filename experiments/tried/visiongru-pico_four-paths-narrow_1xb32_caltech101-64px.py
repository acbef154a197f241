"""Four paths of half the width, at the cost of two."""

_base_ = '../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(scan_paths=('row', 'row_reverse', 'column', 'column_reverse'), expand_ratio=1))
