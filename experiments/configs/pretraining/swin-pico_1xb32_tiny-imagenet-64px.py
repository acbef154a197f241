"""Swin of the size of VisionGRU-pico on Tiny-ImageNet; windows that divide its maps of 16, 8, 4 and 2."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_tiny-imagenet-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=24, depths=[2, 2, 3, 2], num_heads=[1, 2, 4, 8]),
        img_size=64,
        window_size=4,
        stage_cfgs=[dict(), dict(), dict(), dict(window_size=2)],
        drop_path_rate=0.0,
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
    ),
)
# The best of three on held-out training images of 50 classes.
optim_wrapper = dict(optimizer=dict(lr=5e-4))
