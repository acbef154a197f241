"""Renaming of released checkpoints of VisionGRU and Vision-RWKV to this package's names, and back."""

from . import visiongru, vrwkv
from .common import first

__all__ = ['arch_of', 'first', 'name_of', 'to_mmvisiongru', 'to_released']


def _family(state):
    """The family that knows the keys; without one, the first family says what is missing."""
    return vrwkv if vrwkv.knows(state) else visiongru


def to_mmvisiongru(state):
    """Rename a released state dict; InputError names keys that are missing, unmapped or of another shape."""
    return _family(state).to_mmvisiongru(state)


def to_released(state):
    """Undo :func:`to_mmvisiongru`; InputError names keys that the released format lacks."""
    return _family(state).to_released(state)


def arch_of(state):
    """The ``arch`` argument of a model, as far as its weights under our names tell."""
    return _family(state).arch_of(state)


def name_of(state):
    """Name of the arch of a model, None if it has no name."""
    return _family(state).name_of(state)
