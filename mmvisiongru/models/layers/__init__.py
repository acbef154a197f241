"""Layers of the backbones."""

from .channels_last import MLP, ChannelsLastConv2d, GELULinear
from .mingru import MinGRU2D
from .rwkv_mix import ChannelMix, SpatialMix

__all__ = ['MLP', 'ChannelMix', 'ChannelsLastConv2d', 'GELULinear', 'MinGRU2D', 'SpatialMix']
