"""Candidate g - 0.5."""

_base_ = '../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

custom_imports = dict(imports=['experiments.tried.shifted'])

model = dict(backbone=dict(type='mmvisiongru.ShiftedVisionGRU'))
