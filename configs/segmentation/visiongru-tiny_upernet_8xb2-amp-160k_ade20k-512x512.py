"""UperNet with VisionGRU-tiny on ADE20K with automatic mixed precision."""

_base_ = './visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

# bfloat16 has the range of float32: no loss scaling. GPUs before Ampere: 'float16', 'dynamic'.
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
# Convolutions in 16 bits are fastest on channels-last tensors.
channels_last = True
