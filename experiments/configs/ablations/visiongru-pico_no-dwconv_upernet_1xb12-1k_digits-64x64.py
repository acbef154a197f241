"""No depthwise convolution before the scan."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'

model = dict(backbone=dict(dwconv_kernel_size=None))
