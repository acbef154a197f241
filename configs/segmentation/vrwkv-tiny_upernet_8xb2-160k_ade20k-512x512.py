"""UperNet with VRWKV-T on ADE20K, without an adapter: the recipe of the released one, in float32."""

_base_ = [
    '../_base_/models/upernet_vrwkv.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k_vrwkv.py',
    '../_base_/runtime/segmentation.py',
    '../_base_/launchers/none.py',
]
