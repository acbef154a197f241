"""UperNet with ConvNeXt of the size of VisionGRU-pico on CamVid."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[3, 3, 4, 3], channels=[24, 48, 96, 192]),
        out_indices=(0, 1, 2, 3),
        # The decode head needs maps, not pooled vectors.
        gap_before_final_norm=False,
    ),
)
