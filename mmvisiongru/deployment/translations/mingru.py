r"""The minGRU scan as ``Scan`` of ONNX: along the lines of the map, all at once, and from line to line.

With a = 1 - z and b = z c (:mod:`mmvisiongru.ops`) the recurrence is h_t = a_t h_{t-1} + b_t. The first Scan
starts every line from 0 and gives its last h and the product k of its a. The second one carries the state
from line to line. The third one reads the lines again, each from the state that enters it. That is 2 W + H
steps for H W tokens read by rows, and the graph contains no size.
"""

# onnxscript reads annotations by issubclass(), which on Python 3.10 rejects collections.abc.Sequence[int].
from typing import Sequence  # noqa: UP035

import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

# Registers the operators.
import mmvisiongru.inference.split_mixer  # noqa: F401
from mmvisiongru.ops.scan_paths import PATHS

DOMAIN = Opset('mmvisiongru', 1)


# ONNX Runtime needs distinct names for a loop state and a scan output of the same tensor, hence Identity.
# Inputs of a body need an element type and no names of sizes. The state is the second term of a sum and the
# first factor of a product: in another order OpenVINO 2026.4.1 is wrong at fixed sizes.
@script(DOMAIN)
def by_lines(a: FLOAT[...], b: FLOAT[...], one: Sequence[int], two: Sequence[int]) -> FLOAT[...]:
    """h from a and b (W, B, H, D), line by line; ``one`` and ``two`` are directions of 1 and 2 tensors."""
    zeros = op.Expand(op.Constant(value_float=0.0), op.Shape(a, start=1))
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(a, start=1))

    @graph()
    def token(h: FLOAT[...], k: FLOAT[...], a_t: FLOAT[...], b_t: FLOAT[...]):
        return b_t + h * a_t, k * a_t

    ends, products = op.Scan(zeros, ones, a, b, body=token, num_scan_inputs=2, scan_input_directions=two)

    @graph()
    def line(state: FLOAT[...], k_t: FLOAT[...], end: FLOAT[...]):
        return end + state * k_t, op.Identity(state)

    _last, entering = op.Scan(
        op.Gather(zeros, op.Constant(value_int=0), axis=1), products, ends,
        body=line, num_scan_inputs=2, scan_input_axes=[1, 1], scan_output_axes=[1],
        scan_input_directions=two, scan_output_directions=one,
    )  # fmt: skip

    @graph()
    def again(h: FLOAT[...], a_t: FLOAT[...], b_t: FLOAT[...]):
        h_t = b_t + h * a_t
        return h_t, op.Identity(h_t)

    _h, out = op.Scan(
        entering, a, b,
        body=again, num_scan_inputs=2, scan_input_directions=two, scan_output_directions=one,
    )  # fmt: skip
    return out


def scan_lines(gate, hidden, candidate: str, reverse: bool):
    """``mmvisiongru::scan_lines`` on (W, B, H, D)."""
    z = op.Sigmoid(gate)
    # g(x) without a branch: x + 0.5 is above sigmoid(x) where x > 0, and below it otherwise.
    c = hidden if candidate == 'linear' else op.Max(op.Sigmoid(hidden), op.Add(hidden, 0.5))
    return by_lines(op.Sub(1.0, z), op.Mul(z, c), one=[int(reverse)], two=[int(reverse)] * 2)


def mingru_scan_2d(projected, paths: str, candidate: str, backend: str, state=None):
    """``mmvisiongru::mingru_scan_2d``."""
    if state is not None:
        raise NotImplementedError('a scan that starts from a state has no translation')
    directions = [PATHS[name] for name in paths.split(',')]
    parts = op.Split(projected, axis=3, num_outputs=2 * len(directions))
    outs = []
    for (column, reverse), hidden, gate in zip(directions, parts[::2], parts[1::2], strict=True):
        # From (B, H, W, D) to steps first, (W, B, H, D), or (H, B, W, D) for columns.
        there, back = ([1, 0, 2, 3], [1, 0, 2, 3]) if column else ([2, 0, 1, 3], [1, 2, 0, 3])
        h = scan_lines(*(op.Transpose(x, perm=there) for x in (gate, hidden)), candidate, reverse)
        outs.append(op.Transpose(h, perm=back))
    return op.Concat(*outs, axis=3)


TABLE = {
    torch.ops.mmvisiongru.scan_lines.default: scan_lines,
    torch.ops.mmvisiongru.mingru_scan_2d.default: mingru_scan_2d,
}
