"""Output projections that sum to zero at the start, candidate g."""

_base_ = '../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

custom_imports = dict(imports=['experiments.tried.centred'])

model = dict(backbone=dict(type='mmvisiongru.CentredVisionGRU'))
