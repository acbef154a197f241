"""FCNHead of mmseg with a faster loss."""

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead

from mmvisiongru.models.heads.loss import FasterLoss
from mmvisiongru.registry import MODELS


@MODELS.register_module()
class FCNHead(FasterLoss, MMSegFCNHead):
    """Fully convolutional head (arXiv:1411.4038) with the arguments and values of mmseg's."""
