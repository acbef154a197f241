"""Time, memory and error of a model in torch, ONNX Runtime and OpenVINO, side by side on the CPU.

    python tools/deployment/benchmark_onnx.py mmvisiongru.VisionGRU:tiny --sizes 224 512 1024
    python tools/deployment/benchmark_onnx.py CONFIG --sizes 512x683 --json work_dirs/onnx.json

The model is a config file, a name that mmpretrain or mmseg knows, or a backbone, with random weights. Runs
are interleaved, on OMP_NUM_THREADS threads. A runtime that cannot run is skipped, and the reason is printed.
"""

import argparse
import json
import multiprocessing
import os.path as osp
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from logging import ERROR
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru import measure
from mmvisiongru.deployment import check_stack
from mmvisiongru.files import check_folder, write_text
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.zoo import build_model
from tools.deployment.runtimes import has_openvino, onnx_runtime, openvino

# ONNX Runtime has hardly any kernel for bfloat16 on CPUs.
RUNNERS = (
    'torch float32',
    'torch bfloat16',
    'ONNX Runtime float32',
    'ONNX Runtime int8',
    'OpenVINO float32',
    'OpenVINO bfloat16',
    'OpenVINO int8',
)
# Seconds between runs: the threads of a runtime go on spinning after a run and slow the next one.
PAUSE = 0.05


class Raw(nn.Module):
    """Outputs of a model before any post-processing: one or several maps, or scores."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), normalised."""
        out = measure.forward(self.model, images)
        return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def start(runner: str, model: str, folder: str) -> Callable[[Tensor], list[Tensor]]:
    """Load a model, by its name or from the files in the folder, into a runner."""
    runtime, precision = runner.rsplit(' ', 1)
    if runtime == 'torch':
        torch.manual_seed(0)
        # The same weights in each runner.
        raw, dtype = Raw(build_model(model)).eval(), getattr(torch, precision)
        raw.to(dtype)
        return torch.inference_mode()(lambda x: [value.float() for value in raw(x.to(dtype))])
    path = osp.join(folder, 'int8.onnx' if precision == 'int8' else 'float32.onnx')
    if runtime == 'ONNX Runtime':
        run = onnx_runtime(path)
    else:
        run = openvino(path, 'bf16' if precision == 'bfloat16' else 'f32')
    return lambda x: [torch.from_numpy(value) for value in run(x.numpy()).values()]


def write_files(model: str, folder: str) -> None:
    """Export the model, and quantise it."""
    from mmvisiongru.deployment.export import export
    from tools.deployment.files import quantize, save

    torch.manual_seed(0)
    raw = Raw(build_model(model)).eval()
    with torch.inference_mode():
        outputs = [f'output{i}' for i in range(len(raw(torch.zeros(1, 3, 64, 64))))]
    save(export(raw, outputs), osp.join(folder, 'float32.onnx'), {})
    quantize(osp.join(folder, 'float32.onnx'), osp.join(folder, 'int8.onnx'))


def rms_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """RMS of the difference over RMS of the values, of the output where it is largest."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).square().mean().sqrt() / b.square().mean().sqrt()) for a, b in pairs)


def memory_of(arguments: tuple, size: tuple[int, int], threads: int) -> float:
    """Bytes for one image on top of the loaded model, which has seen a small image only.

    They include the model that OpenVINO compiles for the size of the image.
    """
    torch.set_num_threads(threads)
    run = start(*arguments)
    run(torch.zeros(1, 3, 64, 64))
    return measure.peak_memory(lambda: run(torch.zeros(1, 3, *size)), torch.device('cpu'))


def in_new_process(function: Callable, *args):
    """Call a function in a process whose memory no runtime has used; some never free theirs."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(function, args)


def start_all(model: str, folder: str) -> tuple[dict[str, Callable], list[str]]:
    """The ``RUNNERS`` that run the model, and a reason for each of the others."""
    running, notes = {}, []
    for runner in RUNNERS:
        if runner.startswith('OpenVINO') and not has_openvino():
            notes.append(f'{runner}: not installed')
            continue
        try:
            run = start(runner, model, folder)
            run(torch.zeros(1, 3, 64, 64))
            running[runner] = run
        # Each runtime has exceptions of its own.
        except Exception as error:
            notes.append(f'{runner}: {" ".join(str(error).split())[:200]}')
    return running, notes


def compare(model: str, sizes: list[tuple[int, int]], repeats: int) -> tuple[list[dict], list[str]]:
    """One row per runner and size, and a reason for each runner that was skipped."""
    rows, threads = [], torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, measure.progress_bar() as bar:
        write_files(model, folder)
        running, notes = start_all(model, folder)
        task = bar.add_task('', total=len(sizes) * len(running) * (repeats + 1))

        def advance():
            bar.advance(task)
            time.sleep(PAUSE)

        for size in sizes:
            bar.update(task, description=f'{size[0]} x {size[1]}')
            x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
            wanted = running[RUNNERS[0]](x)
            errors = {name: rms_error(run(x), wanted) for name, run in running.items()}
            functions = {name: partial(run, x) for name, run in running.items()}
            times = measure.interleaved_times(functions, torch.device('cpu'), repeats, advance)
            for name in running:
                memory = in_new_process(memory_of, (name, model, folder), size, threads)
                rows.append(_row(name, size, times, errors[name], memory))
    return rows, notes


def _row(name: str, size: tuple[int, int], times: dict, error: float, memory: float) -> dict:
    median, base = (1e3 * statistics.median(times[key]) for key in (name, RUNNERS[0]))
    return dict(
        runner=name,
        size=list(size),
        latency_ms=median,
        fastest_ms=1e3 * min(times[name]),
        time_ratio=median / base,
        rms_error=error,
        memory_mb=memory / 2**20,
    )


def side(text: str) -> tuple[int, int]:
    """'512' or '512x683' as height and width."""
    height, _, width = text.partition('x')
    return int(height), int(width or height)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', help='config file, model name of mmpretrain or mmseg, or backbone')
    parser.add_argument('--sizes', nargs='+', type=side, default=[(224, 224)], help='N or HxW')
    parser.add_argument('--repeats', type=int, default=10, help='timed runs of each, after one to warm up')
    parser.add_argument('--json', metavar='FILE', help='write the figures to this file')
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None):
    """Measure and print."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    check_stack()
    if args.json:
        check_folder(osp.dirname(args.json) or '.')
    rows, notes = compare(args.model, args.sizes, args.repeats)
    machine = measure.describe_machine(torch.device('cpu')) | dict(model=args.model, repeats=args.repeats)
    # Where there is no terminal to fit, names matter more than 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(measure.in_words(machine))
    table = Table('runner', 'size', 'ms', 'fastest ms', 'this / torch', 'RMS error', 'memory MB')
    for row in rows:
        table.add_row(
            row['runner'],
            'x'.join(map(str, row['size'])),
            *(f'{row[key]:.1f}' for key in ('latency_ms', 'fastest_ms')),
            f'{row["time_ratio"]:.2f}',
            f'{row["rms_error"]:.1e}',
            f'{row["memory_mb"]:.0f}',
        )
    console.print(table)
    for note in notes:
        console.print(note)
    if args.json:
        write_text(args.json, json.dumps(dict(machine=machine, rows=rows, notes=notes), indent=1))


if __name__ == '__main__':
    main()
