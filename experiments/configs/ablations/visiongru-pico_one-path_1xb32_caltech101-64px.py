"""One path: tokens are read in raster order only."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(scan_paths=('row',)))
