"""Gates that remember from 2 tokens to the whole map at the start."""

_base_ = '../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

custom_imports = dict(imports=['experiments.tried.long_memory'])

model = dict(backbone=dict(type='mmvisiongru.LongMemoryVisionGRU', tokens=(1200, 300, 80, 20)))
