"""ConvNeXt of the size of VisionGRU-pico on Tiny-ImageNet."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_tiny-imagenet-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[3, 3, 4, 3], channels=[24, 48, 96, 192]),
        out_indices=(3,),
        # The neck pools: pooling before the norm would leave it a map of one vector.
        gap_before_final_norm=False,
    ),
)
