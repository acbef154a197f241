"""Layers of the backbones."""

from .conv import ChannelsLastConv2d
from .mingru import MinGRU2D
from .mlp import MLP
from .rwkv_mix import ChannelMix, SpatialMix

__all__ = ['MLP', 'ChannelMix', 'ChannelsLastConv2d', 'MinGRU2D', 'SpatialMix']
