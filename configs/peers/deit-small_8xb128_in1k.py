"""DeiT-S under the recipe of VisionGRU-tiny, its tokens averaged."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='deit-small',
        out_type='featmap',
        with_cls_token=False,
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
    ),
    head=dict(in_channels=384),
)
