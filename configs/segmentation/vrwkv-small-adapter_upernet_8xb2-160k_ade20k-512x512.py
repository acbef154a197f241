"""UperNet with VRWKV-S in a ViT-Adapter on ADE20K, as released: float16, tested in windows of 512."""

_base_ = './vrwkv-small_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisiongru.VRWKVAdapter',
        arch='small',
        drop_path_rate=0.2,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=None,
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    # After `Resize`: predictions are scored at the size of the original image.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16', loss_scale=dict(init_scale=512))
