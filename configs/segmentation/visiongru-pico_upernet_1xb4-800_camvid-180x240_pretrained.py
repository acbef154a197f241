"""UperNet with VisionGRU-pico on CamVid from the published Tiny-ImageNet weights: minutes on one CPU core."""

_base_ = 'visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained', checkpoint='mmvisiongru://visiongru-pico_tiny-imagenet', prefix='backbone.'
        )
    )
)
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=800, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
# The best of three on halves of the training sequences.
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=4)
