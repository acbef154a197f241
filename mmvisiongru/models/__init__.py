"""Models registered in the scope ``mmvisiongru``."""

from .visiongru import VisionGRU
from .vrwkv import VRWKV
from .vrwkv_adapter import VRWKVAdapter

__all__ = ['VRWKV', 'VRWKVAdapter', 'VisionGRU']
