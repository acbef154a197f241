"""Released checkpoints of VisionGRU and Vision-RWKV: their names to ours and back."""

from . import visiongru, vrwkv
from .common import first

FAMILIES = (visiongru, vrwkv)

__all__ = ['arch_of', 'first', 'name_of', 'to_mmvisiongru', 'to_released']


def _family(state):
    """The family that the keys are of; what no family knows gets the message of the first."""
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
        InputError: The model has what the released one has not.
    """
    return _family(state).to_released(state)


def arch_of(state):
    """What the weights tell of the ``arch`` argument of their model, under our names."""
    return _family(state).arch_of(state)


def name_of(state):
    """What the arch of a model is called, None if it has no name."""
    return _family(state).name_of(state)
