"""UperNet with ConvNeXt-T under the recipe of VisionGRU-tiny."""

_base_ = '../segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        # The decode head needs maps, not pooled vectors.
        gap_before_final_norm=False,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
