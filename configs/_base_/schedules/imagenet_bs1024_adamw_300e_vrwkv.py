"""300 epochs at global batch 1024 as the released Vision-RWKV was trained; scale lr with the global batch.

Beside the practice of DeiT and Swin: the positional embedding has weight decay, the cosine falls in each
iteration, and no weights are averaged.
"""

optim_wrapper = dict(
    constructor='mmvisiongru.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    # Until the last iteration, which `train_cfg.max_epochs` sets.
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, by_epoch=True, begin=20, convert_to_iter_based=True),
]

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=1024, enable=False)
