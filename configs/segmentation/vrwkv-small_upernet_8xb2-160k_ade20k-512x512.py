"""UperNet with VRWKV-S on ADE20K, without an adapter: the recipe of the released one, in float32."""

_base_ = [
    '../_base_/models/upernet_vrwkv.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k_vrwkv.py',
    '../_base_/runtime/segmentation.py',
    '../_base_/launchers/none.py',
]

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.2),
    neck=dict(in_channels=[384, 384, 384, 384], out_channels=384),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(optimizer=dict(lr=6e-5), paramwise_cfg=dict(layer_decay_rate=0.85))
