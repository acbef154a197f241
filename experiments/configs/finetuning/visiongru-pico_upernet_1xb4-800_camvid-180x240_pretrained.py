"""UperNet with VisionGRU-pico on CamVid, from the Tiny-ImageNet weights of the same seed."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb4-800_camvid-180x240_pretrained.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            checkpoint='work_dirs/tiny_imagenet/visiongru-pico_1xb32_tiny-imagenet-64px_{seed}_4fedd1c89ca2/epoch_12.pth'
        )
    )
)
