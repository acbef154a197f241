r"""Mixers and MLPs (:mod:`mmvisiongru.deployment.lines`) as ``Scan``, with their projections in the body.

The levels of a mixer are those of :mod:`.mingru`, but the tokens are gone through twice. The first Scan emits
a and b, and the last h and k of each line. The last one starts each line from the state that enters it, so
that its h is the one wanted; only the projection of h leaves the body.
"""

from collections.abc import Sequence

import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

# Registers the operators as well.
import mmvisiongru.deployment.lines  # noqa: F401

from .mingru import DOMAIN


@script(DOMAIN)
def mix(
    x: FLOAT[...],
    hidden: FLOAT[...],
    keep: FLOAT[...],
    out: FLOAT[...],
    one: Sequence[int],
    two: Sequence[int],
) -> FLOAT[...]:
    """x (W, B, H, C), line by line, through weights (C, D), (C, D), (D, C); directions as in mingru.py."""
    sizes = op.Concat(op.Shape(x, start=1, end=3), op.Shape(hidden, start=1), axis=0)
    zeros = op.Expand(op.Constant(value_float=0.0), sizes)
    ones = op.Expand(op.Constant(value_float=1.0), sizes)
    half = op.Constant(value_float=0.5)

    @graph()
    def token(h: FLOAT[...], k: FLOAT[...], x_t: FLOAT[...]):
        a_t = op.Sigmoid(op.MatMul(x_t, keep))
        u_t = op.MatMul(x_t, hidden)
        c_t = op.Max(op.Sigmoid(u_t), u_t + half)
        b_t = c_t - a_t * c_t
        return b_t + h * a_t, k * a_t, a_t, b_t

    ends, products, a, b = op.Scan(
        zeros, ones, x,
        body=token, num_scan_inputs=1, scan_input_directions=one, scan_output_directions=two,
    )  # fmt: skip

    @graph()
    def line(state: FLOAT[...], k_t: FLOAT[...], end: FLOAT[...]):
        return end + state * k_t, op.Identity(state)

    _last, entering = op.Scan(
        op.Gather(zeros, op.Constant(value_int=0), axis=1), products, ends,
        body=line, num_scan_inputs=2, scan_input_axes=[1, 1], scan_output_axes=[1],
        scan_input_directions=two, scan_output_directions=one,
    )  # fmt: skip

    @graph()
    def project(h: FLOAT[...], a_t: FLOAT[...], b_t: FLOAT[...]):
        h_t = b_t + h * a_t
        return h_t, op.MatMul(h_t, out)

    _h, y = op.Scan(
        entering, a, b,
        body=project, num_scan_inputs=2, scan_input_directions=two, scan_output_directions=one,
    )  # fmt: skip
    return y


@script(DOMAIN)
def mlp(x: FLOAT[...], w1: FLOAT[...], b1: FLOAT[...], w2: FLOAT[...], b2: FLOAT[...]) -> FLOAT[...]:
    """x (B, H, W, C), by rows of the map."""

    @graph()
    def row(x_t: FLOAT[...]):
        u_t = op.MatMul(x_t, w1) + b1
        # GELU, which is an operator from opset 20 on only.
        share = op.Erf(u_t / op.Constant(value_float=1.4142135381698608)) + op.Constant(value_float=1.0)
        return op.MatMul(u_t * share * op.Constant(value_float=0.5), w2) + b2

    rows = op.Reshape(x, op.Concat(op.Constant(value_ints=[-1]), op.Shape(x, start=2), axis=0))
    return op.Reshape(op.Scan(rows, body=row, num_scan_inputs=1), op.Shape(x))


def mixer_by_lines(x, hidden, keep, out, column: bool, reverse: bool):
    """``mmvisiongru::mixer_by_lines``."""
    there, back = ([1, 0, 2, 3], [1, 0, 2, 3]) if column else ([2, 0, 1, 3], [1, 2, 0, 3])
    directions = dict(one=[int(reverse)], two=[int(reverse)] * 2)
    return op.Transpose(mix(op.Transpose(x, perm=there), hidden, keep, out, **directions), perm=back)


def mlp_by_lines(x, w1, b1, w2, b2):
    """``mmvisiongru::mlp_by_lines``."""
    return mlp(x, w1, b1, w2, b2)


TABLE = {
    torch.ops.mmvisiongru.mixer_by_lines.default: mixer_by_lines,
    torch.ops.mmvisiongru.mlp_by_lines.default: mlp_by_lines,
}
