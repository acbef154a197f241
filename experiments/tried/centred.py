"""VisionGRU with other initial values than those of the released model, for experiments/NOTES.md only."""

import torch
from torch import nn

from mmvisiongru.models import VisionGRU
from mmvisiongru.registry import MODELS


@MODELS.register_module()
class CentredVisionGRU(VisionGRU):
    """Weights of a path's output projection that sum to zero in each row.

    g of the paper's code is 0.5 at 0 and positive everywhere. What all inner channels have in common does
    not get through such a projection.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for stage in self.stages:
            for block in stage.blocks:
                self._centre(block.mixer)

    @staticmethod
    @torch.no_grad()
    def _centre(mixer: nn.Module) -> None:
        for weight in mixer.out_proj.weight.chunk(len(mixer.paths), 1):
            weight -= weight.mean(1, keepdim=True)
