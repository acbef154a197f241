"""Translations to standard ONNX of operators that ``torch.onnx.export`` lacks or fixes to one size.

A translation takes the arguments of the torch operator, with values of the graph for tensors, and calls
operators of opset 18, which the exporter converts to newer ones. Each module is a group of operators and ends
in ``TABLE``; to add one, add a file and its name in ``GROUPS``.
"""

from collections.abc import Callable

from . import mingru, pooling, wkv

GROUPS = (mingru, pooling, wkv)


def translation_table() -> dict[Callable, Callable]:
    """The table that ``torch.onnx.export(custom_translation_table=...)`` takes."""
    return {operator: translation for group in GROUPS for operator, translation in group.TABLE.items()}
