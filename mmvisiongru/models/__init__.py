"""Models registered in the scope ``mmvisiongru``."""

from . import flops  # noqa: F401  (registers its handles)
from .visiongru import VisionGRU
from .vrwkv import VRWKV
from .vrwkv_adapter import VRWKVAdapter

__all__ = ['VRWKV', 'VRWKVAdapter', 'VisionGRU']
