"""160k iterations at global batch 16 as the released Vision-RWKV was trained, but for the precision.

Vectors and biases have no weight decay. Earlier layers of the backbone have a smaller learning rate:
`layer_decay_rate` is 0.95 for VRWKV-T, 0.85 for S, 0.8 for B and 0.9 for L. All but T have lr 6e-5.
"""

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmvisiongru.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=12e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0, layer_decay_rate=0.95),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    # Until the last iteration, which `train_cfg.max_iters` sets; for a shorter one see --trial.
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500),
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(base_batch_size=16, enable=False)
