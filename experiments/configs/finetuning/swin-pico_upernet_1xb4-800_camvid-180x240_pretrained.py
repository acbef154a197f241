"""UperNet with Swin-pico on CamVid, from the Tiny-ImageNet weights of the same seed."""

_base_ = '../peers/swin-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(
    backbone=dict(
        # The windows of the pretraining.
        window_size=4,
        stage_cfgs=[dict(), dict(), dict(), dict(window_size=2)],
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='work_dirs/tiny_imagenet/swin-pico_1xb32_tiny-imagenet-64px_{seed}_315c1328863d/epoch_12.pth',
            prefix='backbone.',
        ),
    )
)

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=800, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
# The best of three on halves of the training sequences.
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=4)
