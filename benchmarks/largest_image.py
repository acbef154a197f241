"""Time per megapixel as images grow, and the largest image that fits into memory.

    python benchmarks/largest_image.py --out docs/figures/largest_image
    python benchmarks/largest_image.py --out work_dirs/largest --sides 512 1024 2048 --minutes 1

Inference of classifiers at batch 1 on square images, by default from 512 x 512 with twice the pixels each
time. A model stops at the first size that does not fit into `--memory` GiB or takes longer than `--minutes`;
if it was memory, bisection finds the largest side. Each size is measured in a new process. The limit applies
to the memory that torch reserves on a GPU, and to all private memory of the process on a CPU (Linux). Writes
OUT.csv line by line and OUT.png; a line of an earlier run with the same limit on the same machine is not
measured again.
"""

import argparse
import csv
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.models import COMPARED, OVER_SIZES, build_for_inference
from mmvisiongru import measure
from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.measure import inference
from tools.outputs import stem

COLUMNS = ('model', 'side', 'megapixels', 'outcome', 'seconds', 'seconds_per_megapixel', 'peak_memory_mb')
# Pixels. Sides of the bisection are multiples of it, and so of all strides.
STEP = 32
# Seconds. A faster image is measured twice, and the faster time counts.
SHORT = 10
FITS, MEMORY, TIME = 'fits', 'memory', 'time'
# What a process says before its image.
READY = 'ready'


def sides(first: int = 512, last: int = 8192) -> list[int]:
    """Sides from ``first`` to ``last`` with twice the pixels each time, in multiples of STEP."""
    number = round(2 * math.log2(last / first))
    return [STEP * round(first * 2 ** (i / 2) / STEP) for i in range(number + 1)]


def measure_side(key: str, side: int, device: str, memory: float, ready: Callable[[], None]) -> dict:
    """Outcome, seconds and peak memory of one image, after ``ready``; only the outcome if it does not fit."""
    device, limit = torch.device(device), int(memory * 2**30)
    if device.type == 'cuda':
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info(device)[1], device)
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        model = build_for_inference(key, device)
        # The first call also compiles and allocates.
        inference(model, torch.randn(1, 3, 224, 224, device=device))
        ready()
        run = partial(timed, partial(inference, model, torch.randn(1, 3, side, side, device=device)), device)
        seconds = []
        peak = measure.peak_memory(lambda: seconds.append(run()), device) / 2**20
        if seconds[0] < SHORT:
            seconds.append(run())
    except (RuntimeError, MemoryError) as error:
        if 'memory' not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return dict(outcome=MEMORY)
    return dict(outcome=FITS, seconds=min(seconds), peak_memory_mb=peak)


def send_side(end: Connection, *args) -> None:
    """:func:`measure_side` for a process whose parent holds the other end of the pipe."""
    end.send(measure_side(*args, ready=partial(end.send, READY)))


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call."""
    measure.synchronize(device)
    start = time.perf_counter()
    function()
    measure.synchronize(device)
    return time.perf_counter() - start


def in_process(name: str, side: int, args) -> dict:
    """:func:`measure_side` in a new process, which is killed after the time limit for its image."""
    row = dict(model=name, side=side, megapixels=side * side / 1e6)
    context = get_context('spawn')
    results, end = context.Pipe(duplex=False)
    arguments = (end, COMPARED[name], side, args.device, args.memory)
    process = context.Process(target=send_side, args=arguments)
    process.start()
    end.close()
    try:
        found = results.recv()
        if found == READY:
            found = results.recv() if results.poll(60 * args.minutes) else dict(outcome=TIME)
    except EOFError:
        process.join()
        # The system kills what needs more memory than there is.
        if process.exitcode != -signal.SIGKILL:
            code = f'its process ended with exit code {process.exitcode}'
            raise InputError(f'{name}, {side} x {side}: {code}; see what it printed') from None
        found = dict(outcome=MEMORY)
    process.kill()
    process.join()
    if 'seconds' in found:
        found['seconds_per_megapixel'] = found['seconds'] / row['megapixels']
    return row | found


def wanted(name: str, rows: list[dict], grid: Sequence[int]) -> Iterator[int]:
    """Sides of a model that remain to be measured; the caller adds the row of each to ``rows``."""
    for side in grid:
        if not any(row['side'] == side for row in of(name, rows)):
            yield side
        if next(row for row in of(name, rows) if row['side'] == side)['outcome'] != FITS:
            break
    while (side := between(of(name, rows))) is not None:
        yield side


def between(rows: list[dict]) -> int | None:
    """The side halfway between the largest that fits and the smallest that does not fit into memory."""
    refused = [row['side'] for row in rows if row['outcome'] == MEMORY]
    fits = max((row['side'] for row in rows if row['outcome'] == FITS), default=0)
    # Above the time limit the largest side cannot be found.
    if not refused or not fits or any(row['outcome'] == TIME for row in rows):
        return None
    middle = STEP * ((fits + min(refused)) // 2 // STEP)
    return middle if fits < middle < min(refused) else None


def of(name: str, rows: list[dict]) -> list[dict]:
    """Rows of a model."""
    return [row for row in rows if row['model'] == name]


def read(path: Path, machine: str) -> list[dict]:
    """Rows of the table of an earlier run, which must have been measured on the same."""
    if not path.exists():
        return []
    first, *lines = path.read_text(encoding='utf-8').splitlines()
    if first != machine:
        raise InputError(f'{path} was measured on other than {machine}; choose another --out or move it away')
    return [dict(row, side=int(row['side'])) for row in csv.DictReader(lines)]


def append(path: Path, row: dict, machine: str) -> None:
    """Append a row; before the first, write what it was measured on."""
    new = not path.exists()
    with path.open('a', encoding='utf-8', newline='') as file:
        if new:
            file.write(f'{machine}\n')
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({k: f'{v:.4g}' if isinstance(v, float) else v for k, v in row.items()})


def plot(rows: list[dict], memory: float, path: Path) -> None:
    """Draw seconds per megapixel over megapixels; linear cost is a level line."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for i, name in enumerate(dict.fromkeys(row['model'] for row in rows)):
        points = sorted(
            (float(row['megapixels']), float(row['seconds_per_megapixel']))
            for row in of(name, rows)
            if row['outcome'] == FITS
        )
        largest = max((row['side'] for row in of(name, rows) if row['outcome'] == FITS), default=0)
        label = f'{name}, up to {largest} x {largest}'
        axis.plot(*zip(*points, strict=True), marker='os^Dv'[i % 5], label=label)
    axis.set(xscale='log', yscale='log', xlabel='megapixels', ylabel='seconds per megapixel')
    axis.set_title(f'inference, batch 1, at most {memory:g} GiB')
    axis.grid(True, alpha=0.3, which='both')
    axis.legend(fontsize='small')
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out', type=stem, default='work_dirs/largest_image', help='write OUT.csv and OUT.png'
    )
    parser.add_argument(
        '--sides', nargs='+', type=int, default=sides(), help='sides of the images, in ascending order'
    )
    parser.add_argument('--memory', type=float, default=16.0, help='GiB that each process may use')
    parser.add_argument('--minutes', type=float, default=10.0, help='minutes that each image may take')
    measure.add_device_option(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Measure, then draw."""
    args = parse_args(argv)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = out.parent / f'{out.name}.csv'
    machine = measure.describe_machine(torch.device(args.device)) | dict(memory_gib=args.memory)
    machine = f'# {measure.in_words(machine)}'
    with one_line_errors():
        rows = read(table, machine)
        for name in OVER_SIZES:
            for side in wanted(name, rows, args.sides):
                row = in_process(name, side, args)
                rows.append(row)
                append(table, row, machine)
                seconds = row.get('seconds', math.nan)
                print(f'{name}, {side} x {side}: {row["outcome"]}, {seconds:.2f} s', flush=True)
    plot(rows, args.memory, out.parent / f'{out.name}.png')


if __name__ == '__main__':
    main()
