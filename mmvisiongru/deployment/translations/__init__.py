"""Operators that ``torch.onnx.export`` does not know, or not at any size, in standard operators of ONNX.

A translation is called with the arguments of the torch operator, tensors as values of the graph, and calls
operators of opset 18, from which the exporter goes on to newer ones. A module here is a group of operators
and ends in ``TABLE``; a new one is a file and a name in ``GROUPS``.
"""

from collections.abc import Callable

from . import mingru, pooling, wkv

GROUPS = (mingru, pooling, wkv)


def translation_table() -> dict[Callable, Callable]:
    """The table that ``torch.onnx.export(custom_translation_table=...)`` takes."""
    return {operator: translation for group in GROUPS for operator, translation in group.TABLE.items()}
