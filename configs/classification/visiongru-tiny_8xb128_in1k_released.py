"""VisionGRU-tiny on ImageNet-1k, as the released code trains it."""

_base_ = [
    '../_base_/models/visiongru_classifier.py',
    '../_base_/datasets/imagenet_bs128_bilinear_224.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e_released.py',
    '../_base_/runtime/classification.py',
    '../_base_/launchers/none.py',
]

# On GPUs; without it a run takes true float32.
env_cfg = dict(tf32=True)
