"""VRWKV-T classifier: mean over the tokens of the last layer, then one linear layer."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmvisiongru.VRWKV', arch='tiny'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=192,
        # As in the backbone.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        # Accuracy on mixed images means little.
        cal_acc=False,
    ),
    # One of the two for every batch, with equal probability.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
