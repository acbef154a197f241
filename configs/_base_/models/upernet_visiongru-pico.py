"""UperNet on VisionGRU-pico, small enough to train on a laptop without a GPU."""

_base_ = './upernet_visiongru.py'

# SyncBN needs a GPU.
norm_cfg = dict(type='BN', requires_grad=True)

model = dict(
    backbone=dict(arch='pico'),
    decode_head=dict(in_channels=[24, 48, 96, 192], channels=64, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=96, channels=64, norm_cfg=norm_cfg),
)
