"""Mask R-CNN with Swin-T of mmpretrain on COCO, 12 epochs: the peer of VisionGRU-tiny."""

_base_ = './mask-rcnn_visiongru-tiny_fpn_8xb2-1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch='tiny',
        pad_small_map=True,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
# As in Swin's own recipe.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))))
