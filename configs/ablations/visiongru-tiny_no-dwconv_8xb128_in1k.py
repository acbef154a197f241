"""No depthwise convolution before the scan."""

_base_ = '../classification/visiongru-tiny_8xb128_in1k.py'

model = dict(backbone=dict(dwconv_kernel_size=None))
