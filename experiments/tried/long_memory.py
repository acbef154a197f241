"""VisionGRU whose gates remember long from the start; for experiments/NOTES.md only."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D
from mmvisiongru.registry import MODELS


def spread_time_constants(mixer: MinGRU2D, tokens: int) -> None:
    """Give the gates a bias with which 1 / z of a path's channels goes from 2 to ``tokens`` on a log scale.

    That is z at a pre-activation of 0 before the bias. The hidden half gets a bias of zero.
    """
    width = mixer.in_proj.out_features // len(mixer.paths) // 2
    tau = torch.logspace(1, math.log2(tokens), width, base=2)
    bias = torch.cat([torch.zeros(width), -(tau - 1).log()])
    mixer.in_proj.bias = nn.Parameter(bias.repeat(len(mixer.paths)))


@MODELS.register_module()
class LongMemoryVisionGRU(VisionGRU):
    """VisionGRU with :func:`spread_time_constants` in every mixer; ``tokens`` of each stage's map."""

    def __init__(self, *args, tokens: Sequence[int], **kwargs):
        super().__init__(*args, **kwargs)
        for stage, number in zip(self.stages, tokens, strict=True):
            for block in stage.blocks:
                spread_time_constants(block.mixer, number)
