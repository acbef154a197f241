"""Renaming of released checkpoints of VisionGRU and Vision-RWKV to this package's names, and back."""

from . import visiongru, vrwkv
from .common import first

FAMILIES = (visiongru, vrwkv)

__all__ = ['arch_of', 'first', 'name_of', 'to_mmvisiongru', 'to_released']


def _family(state):
    """The family that knows the keys; without one, the first family says what is missing."""
    return next((family for family in FAMILIES if family.knows(state)), FAMILIES[0])


def to_mmvisiongru(state):
    """Rename a released state dict, whatever wrappers it came through.

    Raises:
        InputError: A key is missing, unmapped or of another shape.
    """
    return _family(state).to_mmvisiongru(state)


def to_released(state):
    """Undo :func:`to_mmvisiongru`.

    Raises:
        InputError: The model has keys that the released format lacks.
    """
    return _family(state).to_released(state)


def arch_of(state):
    """The ``arch`` argument of a model, as far as its weights under our names tell."""
    return _family(state).arch_of(state)


def name_of(state):
    """Name of the arch of a model, None if it has no name."""
    return _family(state).name_of(state)
