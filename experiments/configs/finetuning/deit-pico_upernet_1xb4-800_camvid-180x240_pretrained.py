"""UperNet with DeiT-pico on CamVid, from the Tiny-ImageNet weights of the same seed."""

_base_ = '../peers/deit-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(
    backbone=dict(
        # The backbone of the pretraining. Its positions are enlarged in every forward pass: on loading,
        # mmpretrain enlarges those of square images only.
        arch=dict(num_layers=12),
        img_size=64,
        patch_size=(16, 22),
        out_indices=(2, 5, 8, 11),
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='work_dirs/tiny_imagenet/deit-pico_1xb32_tiny-imagenet-64px_{seed}_63df87bfc386/epoch_12.pth',
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
