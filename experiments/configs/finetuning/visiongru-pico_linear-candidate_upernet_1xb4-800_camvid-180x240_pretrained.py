"""UperNet with VisionGRU-pico, linear candidate, on CamVid from Tiny-ImageNet weights of the same seed."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb4-800_camvid-180x240_pretrained.py'

model = dict(
    backbone=dict(
        candidate='linear',
        init_cfg=dict(
            checkpoint='work_dirs/tiny_imagenet/visiongru-pico_linear-candidate_1xb32_tiny-imagenet-64px_{seed}_d556c04e46dc/epoch_12.pth'
        ),
    )
)
