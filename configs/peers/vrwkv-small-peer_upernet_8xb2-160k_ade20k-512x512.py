"""UperNet with VRWKV-S, and a neck that makes a pyramid of it, under the recipe of VisionGRU-tiny."""

_base_ = '../segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(_delete_=True, type='mmvisiongru.VRWKV', arch='small', out_indices=(2, 5, 8, 11)),
    # A plain backbone has no pyramid of its own.
    neck=dict(type='Feature2Pyramid', embed_dim=384, norm_cfg=dict(type='SyncBN', requires_grad=True)),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
