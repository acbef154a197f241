"""Compilation of the parts of a model for training, as ``compile`` of a config asks for it."""

from functools import partial

import torch
from mmengine.model import BaseDataPreprocessor
from torch import nn


def compile_parts(model: nn.Module, settings: dict) -> dict[str, tuple]:
    """Compile the children of a model with the ``settings`` of torch.compile. Returns each with its forward.

    The model around them is given the names of the files in a batch, and would be compiled again for each. So
    would evaluation, where each image may have a size of its own. In the forward of a wrapper for several
    processes, torch splits what it compiles so that gradients are exchanged while others are computed.
    """
    parts = {}
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            parts.update({f'{name}.{i}': part for i, part in child.named_children()})
        elif not isinstance(child, BaseDataPreprocessor):
            parts[name] = child
    for name, part in parts.items():
        parts[name] = part, part.forward
        # mmseg does not call its heads, but their forward.
        part.forward = partial(_forward, part, part.forward, torch.compile(part.forward, **settings))
    return parts


def _forward(part, eager, compiled, *args, **kwargs):
    return (compiled if part.training else eager)(*args, **kwargs)
