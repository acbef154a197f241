"""UperNet with VisionGRU-base on ADE20K, 160k iterations."""

_base_ = [
    '../_base_/models/upernet_visiongru.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k.py',
    '../_base_/runtime/segmentation.py',
    '../_base_/launchers/none.py',
]

model = dict(
    backbone=dict(arch='base'),
    decode_head=dict(in_channels=[104, 208, 416, 832]),
    auxiliary_head=dict(in_channels=416),
)
