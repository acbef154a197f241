"""Adaptive average pooling of maps of any size: two matrix products.

ONNX has no such operator, and the exporter writes a plain pooling whose window fits the example's size alone.
"""

from collections.abc import Sequence

from onnxscript import opset18 as op

from mmvisiongru import _compat


def averages(size, bins: int):
    """Matrix (bins, size): row i averages positions floor(i size / bins) to ceil((i + 1) size / bins)."""
    first = op.Unsqueeze(op.Range(0, bins, 1), [1])
    start = op.Div(op.Mul(first, size), bins)
    end = op.Div(op.Add(op.Mul(op.Add(first, 1), size), bins - 1), bins)
    at = op.Range(0, op.Squeeze(size), 1)
    inside = op.And(op.GreaterOrEqual(at, start), op.Less(at, end))
    return op.Div(op.Cast(inside, to=1), op.Cast(op.Sub(end, start), to=1))


def adaptive_avg_pool2d(x, output_size: Sequence[int]):
    """Average pooling of (B, C, H, W) to a fixed size."""
    rows = averages(op.Shape(x, start=2, end=3), output_size[0])
    columns = averages(op.Shape(x, start=3, end=4), output_size[1])
    # Columns first: with a matrix on the right, the product of the large map is a single GEMM.
    return op.MatMul(rows, op.MatMul(x, op.Transpose(columns, perm=[1, 0])))


TABLE = dict.fromkeys(_compat.adaptive_pooling_operators(), adaptive_avg_pool2d)
