"""Backbones."""

from .visiongru import VisionGRU
from .vrwkv import VRWKV

__all__ = ['VRWKV', 'VisionGRU']
