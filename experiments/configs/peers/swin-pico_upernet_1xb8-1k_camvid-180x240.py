"""UperNet with Swin of the size of VisionGRU-pico on CamVid."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=24, depths=[2, 2, 3, 2], num_heads=[1, 2, 4, 8]),
        window_size=6,
        pad_small_map=True,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
    ),
)
