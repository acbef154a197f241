"""160k iterations at global batch 16 as the released Vision-RWKV was trained, but for the precision.

Vectors and biases have no weight decay. The layers of the backbone learn the more slowly the earlier they
are: `layer_decay_rate` is 0.95 for VRWKV-T, 0.85 for S, 0.8 for B, 0.9 for L, and lr 6e-5 but for T.
"""

_base_ = './ade20k_bs16_adamw_160k.py'

optim_wrapper = dict(
    optimizer=dict(lr=12e-5),
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        layer_decay_rate=0.95,
    ),
)
