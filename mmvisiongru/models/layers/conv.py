"""Convolution on channels-last maps."""

from torch import Tensor, nn


class ChannelsLastConv2d(nn.Conv2d):
    """``nn.Conv2d`` on (B, H, W, C); the permutes are views of the channels-last memory format."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
