"""VRWKV-S under the recipe of VisionGRU-tiny."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(
    backbone=dict(_delete_=True, type='mmvisiongru.VRWKV', arch='small'),
    head=dict(in_channels=384),
)
