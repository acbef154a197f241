"""Layers that compute in one pass what follows them: linear layers through oneDNN, convolutions."""

from mmcv.cnn import ConvModule
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import Tensor, nn

from mmvisiongru._compat import linear
from mmvisiongru.models.layers import MLP, ChannelMix
from mmvisiongru.models.layers.joined_conv import JoinedConv2d

from .form import InferenceForm, is_as_built


class FusedLinear(InferenceForm, nn.Linear):
    """``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        self.check_inference()
        return linear(x, self.weight, self.bias)


class FusedLinearGELU(InferenceForm, nn.Linear):
    """``nn.Linear`` with the GELU that follows it."""

    def forward(self, x: Tensor) -> Tensor:
        self.check_inference()
        return linear(x, self.weight, self.bias, gelu=True)


class FusedMLP(InferenceForm, MLP):
    """:class:`MLP`, whose hidden map is written once."""

    def forward(self, x: Tensor) -> Tensor:
        self.check_inference()
        x = linear(x, self.fc1.weight, self.fc1.bias, gelu=True)
        return linear(x, self.fc2.weight, self.fc2.bias)


class InPlaceChannelMix(InferenceForm, ChannelMix):
    """:class:`ChannelMix`, whose hidden map is written once: two more copies cost 10 % of its products."""

    def activate(self, x: Tensor) -> Tensor:
        """relu(x)^2, in place."""
        self.check_inference()
        x = x.relu_()
        return x.mul_(x)


class FoldedConvModule(InferenceForm, ConvModule):
    """mmcv's ``ConvModule``: folds its batch norm into the convolution at each call, and keeps both."""

    @classmethod
    def fits(cls, layer: ConvModule) -> bool:
        """Whether a batch norm follows a convolution, both as built."""
        kinds = {layer.conv: (nn.Conv2d, JoinedConv2d), layer.norm: (nn.BatchNorm2d, SyncBatchNorm)}
        return all(type(part) in known and is_as_built(part) for part, known in kinds.items())

    @classmethod
    def convert(cls, layer: ConvModule) -> None:
        """Turn on mmcv's own form, which may be called in any mode."""
        layer.turn_on_efficient_conv_bn_eval()
