"""UPerHead of mmseg in about half of its operations."""

from collections.abc import Sequence

from mmseg.models.decode_heads import UPerHead as MMSegUPerHead
from mmseg.models.utils import resize
from torch import Tensor

from mmvisiongru.models.heads.loss import FasterLoss
from mmvisiongru.models.layers.joined_conv import JoinedConv2d
from mmvisiongru.registry import MODELS


@MODELS.register_module()
class UPerHead(FasterLoss, MMSegUPerHead):
    """UperNet's head (arXiv:1807.10221), equal to mmseg's up to rounding.

    Arguments, parameters and state-dict keys are those of mmseg's UPerHead, so checkpoints go both ways. The
    two convolutions of joined maps, behind the pooled maps and behind the pyramid, mix the channels of each
    map at its own resolution (``models/layers/joined_conv.py``). For UperNet-tiny and 512 x 512 pixels that
    takes 110 GMACs instead of 211.

    Args:
        pool_scales (Sequence[int]): Sides of the pooled maps.
        **kwargs: As in mmseg's ``BaseDecodeHead``; an unknown name raises. ``conv_cfg`` must give
            ``nn.Conv2d``.
    """

    def __init__(self, pool_scales: Sequence[int] = (1, 2, 3, 6), **kwargs):
        super().__init__(pool_scales, **kwargs)
        for module in (self.bottleneck, self.fpn_bottleneck):
            module.conv = JoinedConv2d.replace(module.conv, 'bilinear', self.align_corners)

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) of the stages, finest first -> the map to classify, (B, channels, H, W)."""
        *inputs, top = [inputs[i] for i in self.in_index]
        top = self.bottleneck([top, *(pool(top) for pool in self.psp_modules)])
        outs = [top]
        for x, lateral, conv in reversed(list(zip(inputs, self.lateral_convs, self.fpn_convs, strict=True))):
            x = lateral(x)
            top = x + resize(top, x.shape[2:], mode='bilinear', align_corners=self.align_corners)
            outs.append(conv(top))
        return self.fpn_bottleneck(outs[::-1])
