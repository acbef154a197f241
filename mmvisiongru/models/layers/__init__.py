"""Layers of the backbones."""

from .conv import ChannelsLastConv2d
from .mingru import MinGRU2D
from .mlp import MLP

__all__ = ['MLP', 'ChannelsLastConv2d', 'MinGRU2D']
