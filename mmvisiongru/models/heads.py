"""Decode heads of mmseg, computed with fewer operations.

Unlike the rest of ``models`` this file needs mmseg. Its registry imports it when a config names a head.
Arguments, parameters and state-dict keys are those of mmseg's heads, so checkpoints go both ways.
"""

from collections.abc import Sequence

import torch
from mmseg.models import decode_heads
from mmseg.models.utils import resize
from torch import Tensor, nn

from mmvisiongru.models.layers.joined_conv import JoinedConv2d
from mmvisiongru.registry import MODELS

# Rows of pixels compared at a time: the copy of their logits stays in a CPU's caches.
ROWS = 16


def pixel_accuracy(logits: Tensor, labels: Tensor, ignore_index: int, threshold: float | None) -> Tensor:
    """Percent of the labelled pixels whose class has the highest logit; a tie does not count.

    Logits (B, classes, H, W) and labels (B, H, W); one channel is foreground where its sigmoid is above the
    threshold.
    """
    right = labelled = 0
    for image, label in zip(logits.split(ROWS, 2), labels.unsqueeze(1).split(ROWS, 2), strict=True):
        valid = label != ignore_index
        if image.shape[1] == 1:
            correct = (image.sigmoid() > threshold) == label
        else:
            index = label.where(valid, 0)
            correct = image.gather(1, index) > image.scatter(1, index, -torch.inf).amax(1, keepdim=True)
        right, labelled = right + (correct & valid).sum(), labelled + valid.sum()
    return 100 * right / labelled.clamp(min=1)


class FasterLoss:
    """Mixin of a decode head: the losses of mmseg's ``BaseDecodeHead``, and 'acc_seg' without a sort.

    mmseg takes the top class of each pixel by ``topk``, which costs as much as the loss. One channel
    (``out_channels=1``) is compared with the head's threshold; mmseg logs the share of background there.
    """

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Losses of logits (B, classes, h, w) by name, and 'acc_seg' in percent."""
        labels = torch.stack([sample.gt_sem_seg.data for sample in batch_data_samples])
        # The loss is several times slower on channels-last logits.
        logits = seg_logits.contiguous()
        logits = resize(logits, labels.shape[2:], mode='bilinear', align_corners=self.align_corners)
        weight = self.sampler.sample(logits, labels) if self.sampler else None
        labels, losses = labels.squeeze(1), {}
        for loss in self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]:
            value = loss(logits, labels, weight=weight, ignore_index=self.ignore_index)
            losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
        losses['acc_seg'] = pixel_accuracy(logits.detach(), labels, self.ignore_index, self.threshold)
        return losses


@MODELS.register_module()
class FCNHead(FasterLoss, decode_heads.FCNHead):
    """Fully convolutional head (arXiv:1411.4038) with the values of mmseg's."""


@MODELS.register_module()
class SegformerHead(FasterLoss, decode_heads.SegformerHead):
    """SegFormer's all-MLP head (arXiv:2105.15203), equal to mmseg's up to rounding.

    Its 1 x 1 fusion commutes with the enlargement, so it runs before it, on each map at its own resolution.
    """

    def __init__(self, interpolate_mode: str = 'bilinear', **kwargs):
        super().__init__(interpolate_mode, **kwargs)
        fusion = self.fusion_conv
        fusion.conv = JoinedConv2d.replace(fusion.conv, interpolate_mode, self.align_corners)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) of the stages, finest first -> logits (B, classes, H, W)."""
        maps = [conv(inputs[i]) for conv, i in zip(self.convs, self.in_index, strict=True)]
        return self.cls_seg(self.fusion_conv(maps))


@MODELS.register_module()
class UPerHead(FasterLoss, decode_heads.UPerHead):
    """UperNet's head (arXiv:1807.10221), equal to mmseg's up to rounding.

    The two convolutions of joined maps, behind the pooled maps and behind the pyramid, mix the channels of
    each map at its own resolution (``layers/joined_conv.py``). For UperNet-tiny and 512 x 512 pixels that
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
