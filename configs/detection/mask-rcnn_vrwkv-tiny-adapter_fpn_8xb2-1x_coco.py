"""Mask R-CNN with VRWKV-T in a ViT-Adapter on COCO, 12 epochs, as released."""

_base_ = './mask-rcnn_visiongru-tiny_fpn_8xb2-1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisiongru.VRWKVAdapter',
        arch='tiny',
        drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        tokens='last',
    ),
    neck=dict(in_channels=[192, 192, 192, 192]),
)

# Vectors and biases have no weight decay.
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.01),
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0, layer_decay_rate=0.85
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, milestones=[8, 11], gamma=0.1),
]
