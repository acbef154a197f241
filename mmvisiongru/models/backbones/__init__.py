"""Backbones."""

from .visiongru import VisionGRU

__all__ = ['VisionGRU']
