"""UperNet (arXiv:1807.10221) on four layers of VRWKV-T, with the neck that mmseg gives ViT and DeiT.

Pretrained backbone, from a released classifier or one of mmpretrain:
    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=CLASSIFIER.pth model.backbone.init_cfg.prefix=backbone.
"""

_base_ = './upernet_visiongru.py'

model = dict(
    backbone=dict(
        _delete_=True, type='mmvisiongru.VRWKV', arch='tiny', out_indices=(2, 5, 8, 11), drop_path_rate=0.1
    ),
    # One map at one scale has no pyramid.
    neck=dict(
        type='MultiLevelNeck', in_channels=[192, 192, 192, 192], out_channels=192, scales=[4, 2, 1, 0.5]
    ),
    decode_head=dict(in_channels=[192, 192, 192, 192]),
    auxiliary_head=dict(in_channels=192),
)
