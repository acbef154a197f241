"""36 epochs of COCO at global batch 16 with AdamW, as mmdet trains Swin-T."""

_base_ = './coco_1x_adamw.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, milestones=[27, 33], gamma=0.1),
]
train_cfg = dict(max_epochs=36)
