"""No depthwise convolution before the scan."""

_base_ = '../segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(dwconv_kernel_size=None))
