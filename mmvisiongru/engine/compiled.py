"""What ``compile`` of a config compiles: the parts of a model that tensors pass through, for training."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

# Of mmseg's segmentors and mmpretrain's classifiers. Not the model around them: it is given the names of the
# files in a batch, and would be compiled again for each.
PARTS = ('backbone', 'neck', 'decode_head', 'auxiliary_head')


class CompiledParts:
    """The parts of a model, compiled until :meth:`undo`. Their parameters and names stay as they are.

    Evaluation is not compiled: there each image may have a size of its own.

    Args:
        model (nn.Module): Without the wrapper of several processes. Inside that wrapper's forward, torch
            splits what it compiles so that gradients are exchanged while others are computed.
        settings (dict): Of ``torch.compile``.
    """

    def __init__(self, model: nn.Module, settings: dict):
        self.parts = dict(_parts(model))
        # A forward that somebody put on a part itself; the others have that of their class.
        self._patched = {name: vars(part).get('forward') for name, part in self.parts.items()}
        for part in self.parts.values():
            # Heads are not called by mmseg, their forward is.
            part.forward = partial(_forward, part, part.forward, torch.compile(part.forward, **settings))

    def undo(self) -> None:
        """Give the parts their own forward back; a copy of a model would else run the parts of this one."""
        for name, part in self.parts.items():
            vars(part).pop('forward', None)
            if self._patched[name]:
                part.forward = self._patched[name]


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in PARTS:
        part = getattr(model, name, None)
        if isinstance(part, nn.ModuleList):
            yield from ((f'{name}.{i}', each) for i, each in enumerate(part))
        elif isinstance(part, nn.Module):
            yield name, part


def _forward(part, eager, compiled, *args, **kwargs):
    return (compiled if part.training else eager)(*args, **kwargs)
