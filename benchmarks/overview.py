"""Speed of VisionGRU-tiny beside Swin-T and ConvNeXt-T, and before and after a change, at a glance.

    python benchmarks/overview.py
    python benchmarks/overview.py --sizes 224 512 --against ../other_checkout

On the CPU: inference at batch 1, as built and through `mmvisiongru.optimize_for_inference`, and a training
step at batch 8 x 224 with its peak memory. Ratios come first. Runs are interleaved, so that noise of a shared
machine hits all alike. With `--against`, a second process runs another checkout of this repository, in turn
with this one; a model optimized here is compared with the plain one where it has no other. About 5 minutes.
`--all` adds the quick start and the tests, with their results and times: about 15 minutes more.
"""

import argparse
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
PEER = 'Swin-T'
BACKBONES = {
    'VisionGRU-tiny': dict(type='mmvisiongru.VisionGRU', arch='tiny'),
    PEER: dict(type='mmpretrain.SwinTransformer', arch='tiny', pad_small_map=True),
    'ConvNeXt-T': dict(type='mmpretrain.ConvNeXt', arch='tiny'),
}
OPTIMIZED = ', optimized'
TRAIN, TRAIN_SHAPE = 'train', (8, 3, 224, 224)
HERE, OTHER = 'this', 'other'
# Seconds. Threads of a process spin for a while after its run.
PAUSE = 0.02


class Jobs:
    """The models and what is measured of them, in the process whose code they run."""

    def __init__(self):
        # Whichever version of the package is imported, memory is measured by that of this checkout.
        spec = importlib.util.spec_from_file_location('measure', ROOT / 'mmvisiongru/measure.py')
        self.measure = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.measure)
        self.models = {name: build(name) for name in BACKBONES}
        # Older versions have no other form.
        with suppress(ImportError):
            from mmvisiongru import optimize_for_inference

            self.models |= {name + OPTIMIZED: optimize_for_inference(build(name)) for name in BACKBONES}

    def prepare(self, what: str) -> list[str]:
        """Make the functions of an inference size or of the training step; returns the models' names."""
        x = torch.randn(TRAIN_SHAPE if what == TRAIN else (1, 3, int(what), int(what)))
        models = {name: m for name, m in self.models.items() if what != TRAIN or OPTIMIZED not in name}
        make = training_step if what == TRAIN else inference
        self.functions = {name: make(model, x) for name, model in models.items()}
        return list(models)

    def seconds(self, name: str) -> float:
        """Time of one run."""
        time.sleep(PAUSE)
        start = time.perf_counter()
        self.functions[name]()
        return time.perf_counter() - start

    def peak_memory(self, name: str) -> float:
        """Bytes that a run allocates at most."""
        return self.measure.peak_memory(self.functions[name], torch.device('cpu'))


def build(name: str) -> nn.Module:
    """A backbone with random weights."""
    with DefaultScope.overwrite_default_scope(BACKBONES[name]['type'].split('.')[0]):
        return MODELS.build(dict(BACKBONES[name]))


def inference(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward pass without gradients."""
    model.eval()
    return torch.no_grad()(partial(model, x))


def training_step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward pass and a step of AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        model(x)[-1].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Checkout:
    """:class:`Jobs` in a process that imports the package from a checkout."""

    def __init__(self, path: Path, threads: int):
        self.path = path
        self.connection, end = Pipe()
        command = [sys.executable, __file__, '--serve', str(end.fileno()), '--threads', str(threads)]
        paths = os.pathsep.join([str(path), os.environ.get('PYTHONPATH', '')])
        environment = dict(os.environ, PYTHONPATH=paths)
        # It ends with the connection.
        subprocess.Popen(command, env=environment, cwd=path, pass_fds=[end.fileno()])
        end.close()

    def call(self, method: str, *args):
        """Call a method of the jobs."""
        self.connection.send((method, args))
        try:
            return self.connection.recv()
        except EOFError:
            sys.exit(f'error: the process of {self.path} ended; its own message is above')


def serve(connection: Connection) -> None:
    """Call jobs for the process at the other end, until that closes the connection."""
    jobs = Jobs()
    while True:
        try:
            method, args = connection.recv()
        except EOFError:
            return
        connection.send(getattr(jobs, method)(*args))


def compare(sides: dict[str, Checkout], what: str, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of each model of each checkout, interleaved, after one untimed run of each."""
    names = {side: checkout.call('prepare', what) for side, checkout in sides.items()}
    runs = sorted(((s, name) for s in sides for name in names[s]), key=lambda run: (run[1], run[0]))
    found = {run: [] for run in runs}
    for repeat in range(repeats + 1):
        for side, name in runs:
            seconds = sides[side].call('seconds', name)
            if repeat:
                found[side, name].append(seconds)
    return found


def rows_of(what: str, seconds: dict[tuple, list[float]], memory: dict[tuple, float]) -> list[list[str]]:
    """One row per model and checkout: ratios to the peer in the same form and to the other checkout, ms."""
    rows, median = [], {run: statistics.median(times) for run, times in seconds.items()}
    for side, name in median:
        peer = side, PEER + (OPTIMIZED if OPTIMIZED in name else '')
        others = [median.get((OTHER, n)) for n in (name, name.removesuffix(OPTIMIZED)) if side == HERE]
        other = next(filter(None, others), None)
        mine = median[side, name]
        row = [what, name, side, f'{mine / median[peer]:.2f}', f'{mine / other:.2f}' if other else '']
        row.append(f'{1e3 * mine:.1f}')
        if memory:
            row += [f'{memory[side, name] / memory[peer]:.2f}', f'{memory[side, name] / 2**20:.0f}']
        rows.append(row)
    return rows


def run_script(name: str) -> None:
    """Run a script of this repository, and print the line of its result and its time."""
    started = time.perf_counter()
    done = subprocess.run(['bash', f'tools/{name}.sh'], cwd=ROOT, capture_output=True, text=True)
    lines = [line.strip(' =') for line in done.stdout.splitlines() if re.search('mIoU|passed|failed', line)]
    result = lines[-1] if lines else done.stderr.strip()
    print(f'tools/{name}.sh: {result}, {time.perf_counter() - started:.0f} s in all', flush=True)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', nargs='*', type=int, default=[224, 512, 1024, 1248], help='of inference')
    parser.add_argument('--repeats', type=int, default=7, help='timed runs of each after an untimed one')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--against', metavar='PATH', type=Path, help='another checkout of this repository')
    parser.add_argument('--no-train', action='store_true', help='leave the training step out')
    parser.add_argument('--all', action='store_true', help='run the quick start and the tests, too')
    parser.add_argument('--serve', type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Measure, and print each size when it is done."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.serve:
        return serve(Connection(args.serve))
    paths = {HERE: ROOT} | ({OTHER: args.against.resolve()} if args.against else {})
    sides = {side: Checkout(path, args.threads) for side, path in paths.items()}
    line = '{:>6}  {:26}  {:8}  {:>9}  {:>7}  {:>9}  {:>9}  {:>7}'
    print(line.format('size', 'model', 'checkout', f'/ {PEER}', '/ other', 'ms', f'MB / {PEER}', 'MB'))
    for what in [*map(str, args.sizes), *([] if args.no_train else [TRAIN])]:
        # A training step takes long enough to need fewer.
        repeats = -(-args.repeats // 2) if what == TRAIN else args.repeats
        seconds, memory = compare(sides, what, repeats), {}
        if what == TRAIN:
            memory = {run: sides[run[0]].call('peak_memory', run[1]) for run in seconds}
        for row in rows_of(what, seconds, memory):
            print(line.format(*row, *[''] * (8 - len(row))), flush=True)
    for name in ('quickstart', 'run_tests') if args.all else ():
        run_script(name)


if __name__ == '__main__':
    main()
