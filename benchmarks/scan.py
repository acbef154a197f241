"""Precision, time and memory of the scan's backends, beside other implementations of the same recurrence.

    python benchmarks/scan.py --shapes 8x3136x144 1x97344x144

Every output and gradient is first compared with float64; a backend of this package outside of its tolerance
ends the run. Then forward and forward + backward are timed, interleaved. On a GPU the time is that of the
device, and "host" is the share of it that launching takes. minGRU-pytorch (log-space scan),
flash-linear-attention (hgrn) and accelerated-scan are measured, too, if they are installed and run on the
device. One that fails on a shape is skipped there, with its message.
"""

import argparse
import importlib.util
import json
import os.path as osp
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from mmvisiongru import measure
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder, write_text
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.ops import mingru_scan, runnable_backends
from mmvisiongru.ops.mingru import BACKENDS

# RMS of the error over RMS of the reference; the error of a linear-space scan in float32 is far smaller.
TOLERANCE = dict(float32=2e-6, bfloat16=4e-3, float16=1e-3)
# Tensors (B, L, D) read or written: gate, hidden and h; the backward pass reads them and dh, writes two.
TENSORS_MOVED = dict(forward=3, train=9)


def log_space(gate, hidden):
    """minGRU-pytorch's parallel form (Heinsen scan in log space)."""
    from minGRU_pytorch.minGRU import heinsen_associative_scan_log, log_g

    return heinsen_associative_scan_log(-F.softplus(gate), -F.softplus(-gate) + log_g(hidden))


def candidate(hidden):
    """g(x), which the other implementations take as an input of the scan."""
    return torch.where(hidden >= 0, hidden + 0.5, hidden.sigmoid())


def hgrn(gate, hidden):
    """flash-linear-attention: h_t = exp(g_t) h_{t-1} + x_t."""
    from fla.ops.hgrn import fused_recurrent_hgrn

    return fused_recurrent_hgrn(gate.sigmoid() * candidate(hidden), F.logsigmoid(-gate))[0]


def accelerated(gate, hidden):
    """accelerated-scan's warp kernel: channels before tokens, lengths that are powers of two, 32 to 65536."""
    from accelerated_scan.warp import scan

    length = gate.size(1)
    padding = (0, max(32, 1 << (length - 1).bit_length()) - length)
    keep, new = torch.sigmoid(-gate), gate.sigmoid() * candidate(hidden)
    keep, new = (F.pad(x.transpose(1, 2), padding).contiguous() for x in (keep, new))
    return scan(keep, new)[..., :length].transpose(1, 2)


# The module of each of the others, whether it needs a GPU, and the function.
OTHERS = {
    'minGRU-pytorch': ('minGRU_pytorch', False, log_space),
    'fla hgrn': ('fla', True, hgrn),
    'accelerated-scan': ('accelerated_scan', True, accelerated),
}
# One step of Python per token: the definition, not a competitor.
NAMES = (*(name for name in BACKENDS if name != 'reference'), *OTHERS)


def implementations(device: torch.device, dtype: torch.dtype, wanted: list[str]) -> dict:
    """Our backends, and the others that are installed and run on the device; InputError for unknown names."""
    if unknown := [name for name in wanted if name not in NAMES]:
        raise InputError(f'--names {unknown[0]}: there are {", ".join(NAMES)}')
    found = {name: partial(mingru_scan, backend=name) for name in runnable_backends(device, dtype)}
    for name, (module, needs_gpu, function) in OTHERS.items():
        if importlib.util.find_spec(module) and (device.type == 'cuda' or not needs_gpu):
            found[name] = function
    return {name: function for name, function in found.items() if name in (wanted or NAMES)}


def gradients(function, gate, hidden, cotangent):
    """Output and gradients of gate and hidden."""
    gate, hidden = (x.detach().requires_grad_() for x in (gate, hidden))
    out = function(gate, hidden)
    return out.detach(), *torch.autograd.grad(out, (gate, hidden), cotangent)


def errors(function, gate, hidden, cotangent) -> dict[str, float]:
    """RMS error over RMS of the torch backend in float64, of the output and both gradients."""
    double = (x.double() for x in (gate, hidden, cotangent))
    expected = gradients(partial(mingru_scan, backend='torch'), *double)
    got = gradients(function, gate, hidden, cotangent)
    return {
        name: float((g.double() - e).norm() / e.norm())
        for name, g, e in zip(('h', 'd_gate', 'd_hidden'), got, expected, strict=True)
    }


def compare(shape, functions, tensors, limit) -> list[dict]:
    """One row per implementation that runs, with its errors; ours above the limit end the program."""
    rows = []
    for name, function in functions.items():
        try:
            found = errors(function, *tensors)
        except Exception as error:
            if name in BACKENDS:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f'{name} skipped at {shape}: {reason}', file=sys.stderr)
            continue
        if name in BACKENDS and (wrong := {k: v for k, v in found.items() if not v <= limit}):
            sys.exit(f'error: {name} at {shape} is outside of its tolerance of {limit:g}: {wrong}')
        rows.append(dict(name=name, shape=shape, **found))
    return rows


def measure_shape(shape, functions, device, dtype, repeats, advance) -> list[dict]:
    """One row per implementation."""
    generator = torch.Generator(device).manual_seed(0)
    gate, hidden, cotangent = tensors = [
        torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(3)
    ]
    rows = compare(shape, functions, tensors, TOLERANCE[str(dtype).split('.')[1]])
    functions = {row['name']: functions[row['name']] for row in rows}
    forward = {n: torch.inference_mode()(partial(f, gate, hidden)) for n, f in functions.items()}
    train = {n: partial(gradients, f, gate, hidden, cotangent) for n, f in functions.items()}
    for kind, runs in (('forward', forward), ('train', train)):
        memory = {n: measure.peak_memory(f, device) for n, f in runs.items()}
        times, host = launched_times(runs, device, repeats, advance)
        moved = TENSORS_MOVED[kind] * gate.numel() * gate.element_size()
        for row in rows:
            seconds = statistics.median(times[row['name']])
            row[f'{kind}_ms'], row[f'{kind}_peak_mb'] = 1e3 * seconds, memory[row['name']] / 2**20
            row[f'{kind}_bytes_per_s'] = moved / seconds
            launches = host.get(row['name'])
            row[f'{kind}_host_ms'] = 1e3 * statistics.median(launches) if launches else None
    return rows


def launched_times(
    functions: dict[str, Callable[[], object]],
    device: torch.device,
    repeats: int = 10,
    advance: Callable[[], None] = lambda: None,
    calls: int = 10,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a call on a GPU, and of launching it on the host; on a CPU there is no second time.

    A clock around a call shows both together: below about 200 microseconds of work, mostly the launch. Here
    the calls are queued behind other work of the GPU, which runs them between two events without a gap.
    """
    if device.type != 'cuda':
        return measure.interleaved_times(functions, device, repeats, advance), {}
    device_times, host_times = ({name: [] for name in functions} for _ in range(2))
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            measure.synchronize(device)
            keep_busy(device)
            begin.record()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            host = time.perf_counter() - start
            end.record()
            measure.synchronize(device)
            if repeat:
                device_times[name].append(begin.elapsed_time(end) / 1e3 / calls)
                host_times[name].append(host / calls)
            advance()
    return device_times, host_times


def keep_busy(device: torch.device) -> None:
    """Queue work that takes a GPU longer than the host needs to queue some calls: above 10 ms."""
    x = torch.zeros(8192, 8192, device=device)
    for _ in range(3):
        x = x @ x


def copy_bandwidth(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes per second that a copy of ``size`` bytes reads and writes, the best of five."""
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    times = measure.interleaved_times({'copy': lambda: target.copy_(source)}, device, repeats=5)
    return 2 * size / min(times['copy'])


def print_table(rows: list[dict], baseline: str, bandwidth: float) -> None:
    """Print the rows; ratios are to ``baseline``, if it ran, shares to the bandwidth of a copy."""
    table = Table(
        'shape',
        'scan',
        'error h',
        'd_gate',
        'd_hidden',
        'fwd ms',
        'host',
        'x',
        'copy',
        'fwd+bwd ms',
        'host',
        'x',
        'copy',
        'peak MB',
        'x',
    )
    base = {row['shape']: row for row in rows if row['name'] == baseline}
    for row in rows:
        b = base.get(row['shape'], {})
        cells = [f'{row[k]:.0e}' for k in ('h', 'd_gate', 'd_hidden')]
        for kind in ('forward', 'train'):
            host = row[kind + '_host_ms']
            # Above 100 %, the host is what a loop of calls waits for.
            cells += [f'{row[kind + "_ms"]:.2f}', '-' if host is None else f'{host / row[kind + "_ms"]:.0%}']
            cells.append(f'{b[kind + "_ms"] / row[kind + "_ms"]:.1f}' if b else '-')
            cells.append(f'{row[kind + "_bytes_per_s"] / bandwidth:.0%}')
        memory, base_memory = row['train_peak_mb'], b.get('train_peak_mb')
        # The allocator may have kept enough from earlier passes: there is no ratio to zero.
        cells += [f'{memory:.0f}', f'{memory / base_memory:.2f}' if base_memory else '-']
        table.add_row('x'.join(map(str, row['shape'])), row['name'], *cells)
    Console(width=150).print(table)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--shapes', nargs='+', default=['8x3136x144', '1x24336x288', '1x97344x144'], help='BxLxD'
    )
    parser.add_argument('--names', nargs='+', default=[], help='measure only these')
    parser.add_argument('--dtype', choices=sorted(TOLERANCE), default='float32')
    measure.add_device_option(parser)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--json', metavar='FILE', help='write the figures to this file')
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    """Compare, time, print."""
    args = parse_args(argv)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    functions = implementations(device, dtype, args.names)
    shapes = [tuple(map(int, shape.split('x'))) for shape in args.shapes]
    if args.json:
        check_folder(osp.dirname(args.json) or '.')
    rows = []
    with measure.progress_bar() as bar:
        task = bar.add_task('scan', total=2 * len(shapes) * len(functions) * (args.repeats + 1))
        for shape in shapes:
            bar.update(task, description='x'.join(map(str, shape)))
            rows += measure_shape(shape, functions, device, dtype, args.repeats, lambda: bar.advance(task))
    bandwidth = copy_bandwidth(device)
    machine = measure.describe_machine(device) | dict(
        dtype=args.dtype, copy_gb_per_s=round(bandwidth / 1e9, 1)
    )
    print(measure.in_words(machine))
    print_table(rows, 'minGRU-pytorch' if 'minGRU-pytorch' in functions else 'torch', bandwidth)
    if args.json:
        write_text(args.json, json.dumps(dict(machine=machine, rows=rows), indent=1))


if __name__ == '__main__':
    main()
