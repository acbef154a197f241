"""SegFormer's all-MLP head (arXiv:2105.15203) on VisionGRU-tiny: a fraction of the cost of UperNet's."""

_base_ = './visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    decode_head=dict(
        _delete_=True,
        # mmseg's head in half of its operations, with the same weights; type='SegformerHead' is mmseg's own.
        type='mmvisiongru.SegformerHead',
        in_channels=[72, 144, 288, 576],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        ignore_index=255,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
