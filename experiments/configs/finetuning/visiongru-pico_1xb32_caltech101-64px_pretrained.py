"""VisionGRU-pico on 39 classes of Caltech-101, from the published Tiny-ImageNet weights."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained', checkpoint='mmvisiongru://visiongru-pico_tiny-imagenet', prefix='backbone.'
        )
    )
)

# The best of 5e-4, 1e-3 and 2e-3 on halves of the training images; from scratch it is 1e-3.
optim_wrapper = dict(optimizer=dict(lr=2e-3))
