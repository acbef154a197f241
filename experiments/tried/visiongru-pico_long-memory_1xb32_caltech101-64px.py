"""Gates that remember from 2 tokens to the whole map at the start."""

_base_ = '../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

custom_imports = dict(imports=['experiments.tried.long_memory'])

model = dict(backbone=dict(type='mmvisiongru.LongMemoryVisionGRU', tokens=(256, 64, 16, 4)))
