"""ConvNeXt-T under the recipe of VisionGRU-tiny."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        out_indices=(3,),
        # The neck pools: pooling before the norm would leave it a map of one vector.
        gap_before_final_norm=False,
    ),
    head=dict(in_channels=768),
)
