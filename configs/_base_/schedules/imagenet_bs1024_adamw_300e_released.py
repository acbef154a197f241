"""300 epochs at global batch 1024 as the released VisionGRU was trained; scale lr with the global batch.

Weight decay on every parameter, cosine to 0 per iteration, no gradient clipping. Precision was TF32 without
AMP: `env_cfg = dict(tf32=True)`.
"""

optim_wrapper = dict(
    constructor='mmvisiongru.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    # Until the last iteration, which `train_cfg.max_epochs` sets.
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=20, convert_to_iter_based=True),
]
# Decay 0.9999, reached by way of (1 + n) / (10 + n): a short run gets useful averaged weights too.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='MomentumAnnealingEMA',
        momentum=1e-4,
        gamma=9,
        priority='ABOVE_NORMAL',
    )
]

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=1024, enable=False)
