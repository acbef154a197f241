"""No depthwise convolution before the scan."""

_base_ = '../../../configs/classification/visiongru-pico_1xb32_caltech101-64px.py'

model = dict(backbone=dict(dwconv_kernel_size=None))
