"""Mask R-CNN with VRWKV-S in a ViT-Adapter on COCO, 12 epochs, as released."""

_base_ = './mask-rcnn_vrwkv-tiny-adapter_fpn_8xb2-1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2), neck=dict(in_channels=[384, 384, 384, 384]))
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
