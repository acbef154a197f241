"""LayerScale."""

_base_ = '../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

custom_imports = dict(imports=['experiments.tried.layer_scale'])

model = dict(backbone=dict(type='mmvisiongru.LayerScaleVisionGRU'))
