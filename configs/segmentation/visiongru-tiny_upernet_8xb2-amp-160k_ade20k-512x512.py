"""UperNet with VisionGRU-tiny on ADE20K with automatic mixed precision."""

_base_ = './visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

# bfloat16 has the range of float32 and needs no loss scaling; 'float16' on GPUs before Ampere.
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16')
