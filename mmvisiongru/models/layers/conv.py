"""Convolution on channels-last maps."""

from torch import Tensor, nn


class ChannelsLastConv2d(nn.Conv2d):
    """``nn.Conv2d`` on (B, H, W, C); the permutes are views of the channels-last memory format.

    Examples:
        >>> import torch
        >>> from mmvisiongru.models.layers import ChannelsLastConv2d
        >>> ChannelsLastConv2d(3, 8, kernel_size=3, stride=2, padding=1)(torch.rand(1, 9, 6, 3)).shape
        torch.Size([1, 5, 3, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), self._weight(), self.bias).permute(0, 2, 3, 1)

    def _weight(self) -> Tensor:
        """The weight, so that its gradient is stored as it is.

        A depthwise weight (C, 1, k, k) gets the gradient of a channels-last map with another stride along the
        side of 1. That means nothing, but autograd keeps it and DistributedDataParallel warns of it and
        copies. The gradient of a view has strides anew.
        """
        weight = self.weight
        if self.training and weight.size(1) == 1 and weight.stride(0) == weight.stride(1):
            return weight.view(weight.shape)
        return weight
