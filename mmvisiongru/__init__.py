"""VisionGRU (arXiv 2412.18178) for OpenMMLab."""

from .version import __version__

__all__ = ['__version__']
