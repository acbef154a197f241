"""Decode heads of mmseg, computed with fewer operations.

Unlike the rest of ``models`` this package needs mmseg. Its registry imports it when a config names a head.
"""

from .segformer_head import SegformerHead
from .uper_head import UPerHead

__all__ = ['SegformerHead', 'UPerHead']
