r"""Bi-WKV as matrix products over chunks of tokens, for any number of them.

This is the form of the torch backend (``mmvisiongru/ops/wkv/torch_wkv.py``): within a chunk the earlier and
the later tokens are summed by strictly triangular matrices of ones, between chunks by cumulative sums. The
cumulative sums and the tables of exponents are in float64. The graph has no loop and no size but that of a
chunk.
"""

import numpy as np
import torch
from onnxscript import ir
from onnxscript import opset18 as op

# Registers the operator.
import mmvisiongru.ops.wkv  # noqa: F401

CHUNK = 64
FLOAT, DOUBLE = 1, 11


def constant(value):
    """A value of the graph; the exporter makes none of an array."""
    return op.Constant(value=ir.tensor(np.asarray(value)))


def chunks(z):
    """(B, T, C) -> (B, N, CHUNK, C), with zeros after the last token."""
    missing = op.Mod(op.Neg(op.Shape(z, start=1, end=2)), [CHUNK])
    z = op.Pad(z, op.Concat(constant([0]), missing, axis=0), 0.0, [1])
    return op.Reshape(z, op.Concat(constant([0, -1, CHUNK]), op.Shape(z, start=2), axis=0))


def between(totals, w, first, reverse: int):
    """Sums over the chunks before each one, or after it, of totals (B, N, C), as (B, N, 1, C)."""
    there, back = (op.Exp(op.Mul(x, first)) for x in ((op.Neg(w), w) if reverse else (w, op.Neg(w))))
    sums = op.CumSum(op.Mul(op.Cast(totals, to=DOUBLE), there), 1, exclusive=1, reverse=reverse)
    return op.Unsqueeze(op.Cast(op.Mul(sums, back), to=FLOAT), [2])


def mix(z, w, bonus, tokens):
    """K[z] of chunks z (B, N, CHUNK, C); w is float64. Positions after the last token stay finite."""
    step = op.Min(constant(np.arange(CHUNK, dtype=np.float64)[:, None]), op.Cast(tokens, to=DOUBLE))
    one = constant(1.0)
    number = op.Range(0, op.Squeeze(op.Shape(z, start=1, end=2)), 1)
    first = op.Cast(op.Mul(op.Unsqueeze(number, [1]), CHUNK), to=DOUBLE)
    ones = op.Expand(1.0, [CHUNK, CHUNK])
    total = op.Mul(bonus, z)
    for later, sign, away in ((0, w, op.Sub(one, step)), (1, op.Neg(w), op.Add(one, step))):
        grown = op.Mul(z, op.Cast(op.Exp(op.Mul(sign, step)), to=FLOAT))
        # Strictly below the diagonal for the earlier tokens, above it for the later ones.
        triangle = op.Trilu(ones, 1 if later else -1, upper=later)
        inside = op.MatMul(triangle, grown)
        outside = between(op.ReduceSum(grown, [2], keepdims=0), w, first, later)
        side = op.Mul(op.Add(inside, outside), op.Cast(op.Exp(op.Mul(w, away)), to=FLOAT))
        total = op.Add(total, side)
    return total


def bi_wkv(w, u, k, v, distance: str, backend: str):
    """``mmvisiongru::bi_wkv``."""
    if distance != 'paper':
        raise NotImplementedError(f"bi_wkv with distance='{distance}' has no translation; 'paper' has")
    x = op.Exp(op.Sub(k, op.ReduceMax(k, [1], keepdims=1)))
    w, bonus, tokens = op.Cast(w, to=DOUBLE), op.Exp(op.Cast(u, to=FLOAT)), op.Shape(k, start=1, end=2)
    numerator, denominator = (mix(chunks(z), w, bonus, tokens) for z in (op.Mul(x, v), x))
    y = op.Reshape(op.Div(numerator, denominator), op.Concat(constant([0, -1]), op.Shape(k, start=2), axis=0))
    return op.Slice(y, [0], tokens, [1])


TABLE = {torch.ops.mmvisiongru.bi_wkv.default: bi_wkv}
