"""UperNet with VisionGRU-pico on CamVid, from scratch: half an hour on one CPU core."""

_base_ = [
    '../_base_/models/upernet_visiongru-pico.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k.py',
    '../_base_/runtime/segmentation.py',
    '../_base_/launchers/none.py',
]

model = dict(
    data_preprocessor=dict(size=(180, 240)),
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=100),
]
train_cfg = dict(max_iters=1000, val_interval=250)
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=8)
