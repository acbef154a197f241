"""DeiT-pico with patches of 8 on Tiny-ImageNet, its tokens averaged, at its own FLOPs."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_tiny-imagenet-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=96, num_layers=12, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        out_type='featmap',
        with_cls_token=False,
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
    ),
    head=dict(in_channels=96),
)
