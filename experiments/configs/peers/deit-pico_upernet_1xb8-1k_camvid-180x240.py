"""UperNet on CamVid with DeiT of the size of VisionGRU-pico, neck included; patches of 18 for equal FLOPs."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=96, num_layers=11, num_heads=3, feedforward_channels=384),
        img_size=(180, 240),
        patch_size=18,
        out_indices=(1, 4, 7, 10),
        out_type='featmap',
        with_cls_token=False,
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
    ),
    # A plain backbone has no pyramid of its own.
    neck=dict(type='Feature2Pyramid', embed_dim=96, norm_cfg=dict(type='BN', requires_grad=True)),
    decode_head=dict(in_channels=[96, 96, 96, 96]),
    auxiliary_head=dict(in_channels=96),
)
