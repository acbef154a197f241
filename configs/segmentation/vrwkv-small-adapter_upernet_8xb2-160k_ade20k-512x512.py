"""UperNet with VRWKV-S in a ViT-Adapter on ADE20K, as released: float16, tested in windows of 512."""

_base_ = './vrwkv-tiny-adapter_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.2),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)

optim_wrapper = dict(optimizer=dict(lr=6e-5), paramwise_cfg=dict(layer_decay_rate=0.85))
