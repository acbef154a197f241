"""UperNet on CamVid with VRWKV of the size of VisionGRU-pico, neck included; patches and neck as for DeiT."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisiongru.VRWKV',
        arch='pico',
        img_size=(180, 240),
        patch_size=18,
        out_indices=(1, 4, 7, 10),
    ),
    # A plain backbone has no pyramid of its own.
    neck=dict(type='Feature2Pyramid', embed_dim=96, norm_cfg=dict(type='BN', requires_grad=True)),
    decode_head=dict(in_channels=[96, 96, 96, 96]),
    auxiliary_head=dict(in_channels=96),
)
