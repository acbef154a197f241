"""Mask R-CNN with VisionGRU-tiny on COCO, 12 epochs."""

_base_ = [
    '../_base_/models/mask-rcnn_visiongru.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x_adamw.py',
    '../_base_/runtime/detection.py',
    '../_base_/launchers/none.py',
]
