"""Decode heads of mmseg, computed with fewer operations.

Unlike the rest of ``models`` this package needs mmseg. Its registry imports it when a config names a head.
"""

from .fcn_head import FCNHead
from .segformer_head import SegformerHead
from .uper_head import UPerHead

__all__ = ['FCNHead', 'SegformerHead', 'UPerHead']
