"""Compilation of the parts of a model for training, as ``compile`` of a config asks for it."""

from functools import partial

import torch
from mmengine.model import BaseDataPreprocessor
from torch import nn


class CompiledParts:
    """The children of a model, compiled until :meth:`undo`. Their parameters and names stay as they are.

    The model around them is not compiled: it is given the names of the files in a batch, and would be
    compiled again for each. Neither is evaluation, where each image may have a size of its own.

    Args:
        model (nn.Module): Without the wrapper of several processes. Inside the forward of that wrapper, torch
            splits what it compiles so that gradients are exchanged while others are computed.
        settings (dict): Of ``torch.compile``.
    """

    def __init__(self, model: nn.Module, settings: dict):
        self.parts = {}
        for name, child in model.named_children():
            if isinstance(child, nn.ModuleList):
                self.parts.update({f'{name}.{i}': part for i, part in enumerate(child)})
            elif not isinstance(child, BaseDataPreprocessor):
                self.parts[name] = child
        # A part whose forward somebody replaced has one of its own; others have that of their class.
        self.replaced = {name: vars(part).get('forward') for name, part in self.parts.items()}
        for part in self.parts.values():
            # mmseg does not call its heads, but their forward.
            part.forward = partial(_forward, part, part.forward, torch.compile(part.forward, **settings))

    def undo(self) -> None:
        """Restore the forwards: otherwise a copy of the model would keep calling these compiled parts."""
        for name, part in self.parts.items():
            vars(part).pop('forward', None)
            if self.replaced[name]:
                part.forward = self.replaced[name]


def _forward(part, eager, compiled, *args, **kwargs):
    return (compiled if part.training else eager)(*args, **kwargs)
