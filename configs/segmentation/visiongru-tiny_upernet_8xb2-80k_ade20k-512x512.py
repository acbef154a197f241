"""UperNet with VisionGRU-tiny on ADE20K, 80k iterations."""

_base_ = './visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

train_cfg = dict(max_iters=80000)
