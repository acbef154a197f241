"""Two paths, the model itself: raster order and its reverse."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(backbone=dict(scan_paths=('row', 'row_reverse')))
