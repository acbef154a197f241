"""One path: tokens are read in raster order only."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'

model = dict(backbone=dict(scan_paths=('row',)))
