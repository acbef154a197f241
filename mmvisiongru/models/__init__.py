"""Models registered in the scope ``mmvisiongru``."""

from .backbones import VisionGRU

__all__ = ['VisionGRU']
