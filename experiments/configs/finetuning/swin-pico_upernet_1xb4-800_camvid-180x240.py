"""UperNet with Swin-pico on CamVid as in the pretrained config, from random weights."""

_base_ = 'swin-pico_upernet_1xb4-800_camvid-180x240_pretrained.py'

model = dict(backbone=dict(init_cfg=None))
# The best of three on halves of the training sequences.
optim_wrapper = dict(optimizer=dict(lr=1e-3))
