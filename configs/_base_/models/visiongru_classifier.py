"""VisionGRU-tiny classifier: mean over the tokens of the last stage, then one linear layer."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmvisiongru.VisionGRU', arch='tiny', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=576,
        # PyTorch's default initialisation, as in the backbone.
        init_cfg=None,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        # Accuracy on mixed images means little.
        cal_acc=False,
    ),
    # One of the two for every batch, with equal probability.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
