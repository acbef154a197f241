"""Models registered in the scope ``mmvisiongru``."""

from . import flops  # noqa: F401  (registers its handles)
from .backbones import VRWKV, VisionGRU, VRWKVAdapter

__all__ = ['VRWKV', 'VRWKVAdapter', 'VisionGRU']
