"""UperNet with ConvNeXt-pico on CamVid, from the Tiny-ImageNet weights of the same seed."""

_base_ = '../peers/convnext-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/tiny_imagenet/convnext-pico_1xb32_tiny-imagenet-64px_{seed}_5a2763517cc5/epoch_12.pth',
            prefix='backbone.',
        ),
    )
)

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=800, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
# The best of three on halves of the training sequences.
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=4)
