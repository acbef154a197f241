"""Layers of the backbones."""

from .conv import ChannelsLastConv2d
from .mingru import MinGRU2D

__all__ = ['ChannelsLastConv2d', 'MinGRU2D']
