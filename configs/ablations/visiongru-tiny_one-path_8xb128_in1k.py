"""One path: tokens are read in raster order only."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(backbone=dict(scan_paths=('row',)))
