"""VisionGRU with LayerScale (CaiT, arXiv:2103.17239), 0.1 at the start; for experiments/NOTES.md only."""

from mmpretrain.models.utils import LayerScale
from torch import nn

from mmvisiongru.models import VisionGRU
from mmvisiongru.registry import MODELS


@MODELS.register_module()
class LayerScaleVisionGRU(VisionGRU):
    """VisionGRU with a factor for each channel, 0.1 at the start, on what mixers and MLPs add."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for stage in self.stages:
            for block in stage.blocks:
                block.mixer = nn.Sequential(block.mixer, LayerScale(block.norm1.normalized_shape[0], 0.1))
                block.mlp = nn.Sequential(block.mlp, LayerScale(block.norm1.normalized_shape[0], 0.1))
