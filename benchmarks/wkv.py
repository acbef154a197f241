"""Precision, time and memory of Bi-WKV's backends, beside a loop over tokens and softmax attention.

    python benchmarks/wkv.py --shapes 1x4096x192 1x16384x192

The output and every gradient are first compared with float64; a backend outside of its tolerance ends the
run. Then forward passes are timed, interleaved. Attention has heads of 64: C must be divisible by 64. Memory
is the peak of forward + backward in tensors of (B, T, C), including k, v and the gradient of y.
"""

import argparse
import json
import os.path as osp
import statistics
import sys
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from mmvisiongru import measure
from mmvisiongru.files import check_folder, write_text
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.ops import bi_wkv
from mmvisiongru.ops.wkv import runnable_backends

# Largest error over largest value.
TOLERANCE = 2e-6
HELD = 3  # k, v and the gradient of y


def token_loop(w, u, k, v):
    """Bi-WKV one token at a time with a running maximum, forward and back."""

    def states(tokens):
        a, b, top = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e30)
        found = {}
        for t in tokens:
            found[t] = a, b, top
            new = torch.maximum(top - w, k[:, t])
            keep, add = torch.exp(top - w - new), torch.exp(k[:, t] - new)
            a, b, top = keep * a + add * v[:, t], keep * b + add, new
        return found

    past, future = states(range(k.size(1))), states(range(k.size(1) - 1, -1, -1))
    rows = []
    for t, ((a, b, o), (c, d, p)) in enumerate((past[t], future[t]) for t in range(k.size(1))):
        top = torch.maximum(torch.maximum(o, p), u + k[:, t])
        before, after, own = torch.exp(o - top), torch.exp(p - top), torch.exp(u + k[:, t] - top)
        rows.append((before * a + after * c + own * v[:, t]) / (before * b + after * d + own))
    return torch.stack(rows, 1)


def attention(w, u, k, v):
    """Softmax attention of as many tokens and channels, in heads of 64."""
    q, v = (x.unflatten(2, (-1, 64)).transpose(1, 2) for x in (k, v))
    return F.scaled_dot_product_attention(q, q, v)


def gradients(function, tensors, cotangent):
    """y and the gradients of w, u, k and v."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, cotangent)


def errors(function, tensors, cotangent) -> dict[str, float]:
    """Largest error over the largest value of the torch backend in float64."""
    expected = gradients(partial(bi_wkv, backend='torch'), [x.double() for x in tensors], cotangent.double())
    got = gradients(function, tensors, cotangent)
    return {
        name: float((g.double() - e).abs().max() / e.abs().max())
        for name, g, e in zip(('y', 'dw', 'du', 'dk', 'dv'), got, expected, strict=True)
    }


def measure_shape(shape, device, repeats, advance) -> list[dict]:
    """One row per implementation."""
    generator = torch.Generator(device).manual_seed(0)
    k, v, cotangent = (torch.randn(shape, generator=generator, device=device) for _ in range(3))
    w = torch.linspace(-5, 3, shape[2], device=device) / shape[1]
    u = torch.randn(shape[2], generator=generator, device=device) / shape[1]
    tensors = [w, u, k, v]
    # The reference is a loop in float64 and slower than the loop below.
    ours = {name: partial(bi_wkv, backend=name) for name in runnable_backends(device) if name != 'reference'}
    rows = []
    for name, function in ours.items():
        found = errors(function, tensors, cotangent)
        if wrong := {key: value for key, value in found.items() if not value <= TOLERANCE}:
            sys.exit(f'error: {name} at {shape} is outside of its tolerance of {TOLERANCE:g}: {wrong}')
        peak = measure.peak_memory(partial(gradients, function, tensors, cotangent), device)
        rows.append(dict(name=name, **found, tensors=HELD + peak / (k.numel() * k.element_size())))
    functions = ours | dict(loop=token_loop, attention=attention)
    rows += [dict(name=name) for name in ('loop', 'attention')]
    runs = {name: torch.inference_mode()(partial(f, *tensors)) for name, f in functions.items()}
    times = measure.interleaved_times(runs, device, repeats, advance)
    for row in rows:
        row.update(shape=shape, forward_ms=1e3 * statistics.median(times[row['name']]))
    return rows


def print_table(rows: list[dict]) -> None:
    """Print the rows; ratios are forward times over those of the torch backend."""
    table = Table('shape', 'what', 'error y', 'dw', 'du', 'dk', 'dv', 'forward ms', '/ torch', 'tensors')
    base = {row['shape']: row['forward_ms'] for row in rows if row['name'] == 'torch'}
    for row in rows:
        found = [f'{row[key]:.0e}' if key in row else '' for key in ('y', 'dw', 'du', 'dk', 'dv')]
        ratio = row['forward_ms'] / base[row['shape']]
        memory = f'{row["tensors"]:.1f}' if 'tensors' in row else ''
        shape = 'x'.join(map(str, row['shape']))
        table.add_row(shape, row['name'], *found, f'{row["forward_ms"]:.2f}', f'{ratio:.2f}', memory)
    Console(width=110).print(table)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shapes', nargs='+', default=['1x4096x192', '1x16384x192'], help='BxTxC')
    measure.add_device_option(parser)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--json', metavar='FILE', help='write the figures to this file')
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    """Compare, time, print."""
    args = parse_args(argv)
    device = torch.device(args.device)
    shapes = [tuple(map(int, shape.split('x'))) for shape in args.shapes]
    if args.json:
        check_folder(osp.dirname(args.json) or '.')
    rows = []
    with measure.progress_bar() as bar:
        task = bar.add_task('bi_wkv', total=None)
        for shape in shapes:
            bar.update(task, description='x'.join(map(str, shape)))
            rows += measure_shape(shape, device, args.repeats, lambda: bar.advance(task))
    machine = measure.describe_machine(device)
    print(measure.in_words(machine))
    print_table(rows)
    if args.json:
        write_text(args.json, json.dumps(dict(machine=machine, rows=rows), indent=1))


if __name__ == '__main__':
    main()
