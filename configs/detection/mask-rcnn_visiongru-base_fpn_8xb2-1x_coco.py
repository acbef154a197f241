"""Mask R-CNN with VisionGRU-base on COCO, 12 epochs."""

_base_ = './mask-rcnn_visiongru-tiny_fpn_8xb2-1x_coco.py'

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=[104, 208, 416, 832]))
