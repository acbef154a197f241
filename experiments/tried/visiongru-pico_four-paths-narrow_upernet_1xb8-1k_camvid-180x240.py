"""Four paths of half the width, at the cost of two."""

_base_ = '../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(backbone=dict(scan_paths=('row', 'row_reverse', 'column', 'column_reverse'), expand_ratio=1))
