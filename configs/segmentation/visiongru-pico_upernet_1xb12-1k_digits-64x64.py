"""UperNet with VisionGRU-pico on scenes of handwritten digits: minutes on two CPU cores."""

_base_ = [
    '../_base_/models/upernet_visiongru-pico.py',
    '../_base_/datasets/digits_seg.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k.py',
    '../_base_/runtime/segmentation.py',
    '../_base_/launchers/none.py',
]

# 85 % of the pixels are background: with equal weights the first hundreds of iterations teach only to tell it
# from digits, not which digit it is.
loss_decode = dict(class_weight=[0.2] + [1.0] * 10)

model = dict(
    data_preprocessor=dict(size=(64, 64)),
    decode_head=dict(num_classes=11, dropout_ratio=0.0, loss_decode=loss_decode),
    auxiliary_head=dict(num_classes=11, dropout_ratio=0.0, loss_decode=loss_decode),
)

optim_wrapper = dict(optimizer=dict(lr=4e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=100),
]
train_cfg = dict(max_iters=1000, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=12)
