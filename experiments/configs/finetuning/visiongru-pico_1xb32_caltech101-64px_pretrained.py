"""VisionGRU-pico on 39 classes of Caltech-101, from the published Tiny-ImageNet weights."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained', checkpoint='mmvisiongru://visiongru-pico_tiny-imagenet', prefix='backbone.'
        )
    )
)
