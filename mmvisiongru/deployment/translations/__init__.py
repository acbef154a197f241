"""Translations to standard ONNX of operators that ``torch.onnx.export`` lacks or fixes to one size.

A translation takes the arguments of the torch operator, with values of the graph for tensors, and calls
operators of opset 18, which the exporter converts to newer ones. To add one, add a file with a ``TABLE``.
"""

from . import mingru, pooling, wkv


def translation_table() -> dict:
    """The table that ``torch.onnx.export(custom_translation_table=...)`` takes."""
    return mingru.TABLE | pooling.TABLE | wkv.TABLE
