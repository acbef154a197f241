"""SegformerHead of mmseg with its fusion at the maps' own resolution."""

from collections.abc import Sequence

from mmseg.models.decode_heads import SegformerHead as MMSegSegformerHead
from torch import Tensor

from mmvisiongru.models.heads.loss import FasterLoss
from mmvisiongru.models.layers.joined_conv import JoinedConv2d
from mmvisiongru.registry import MODELS


@MODELS.register_module()
class SegformerHead(FasterLoss, MMSegSegformerHead):
    """SegFormer's all-MLP head (arXiv:2105.15203), equal to mmseg's up to rounding.

    Arguments, parameters and state-dict keys are those of mmseg's SegformerHead. Its 1 x 1 fusion commutes
    with the enlargement, so it runs before it, on each map at its own resolution.
    """

    def __init__(self, interpolate_mode: str = 'bilinear', **kwargs):
        super().__init__(interpolate_mode, **kwargs)
        fusion = self.fusion_conv
        fusion.conv = JoinedConv2d.replace(fusion.conv, interpolate_mode, self.align_corners)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) of the stages, finest first -> logits (B, classes, H, W)."""
        maps = [conv(inputs[i]) for conv, i in zip(self.convs, self.in_index, strict=True)]
        return self.cls_seg(self.fusion_conv(maps))
