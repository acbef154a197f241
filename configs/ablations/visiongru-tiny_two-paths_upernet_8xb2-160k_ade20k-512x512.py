"""Two paths, the model itself: raster order and its reverse."""

_base_ = '../segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(scan_paths=('row', 'row_reverse')))
