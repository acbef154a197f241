"""Time and memory of models and functions, on machines that others use too."""

import ctypes
import gc
import platform
import re
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
from mmengine.model import BaseModel
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from mmvisiongru.errors import InputError, in_one_line


def check_device(device: str) -> None:
    """Raise InputError if torch cannot use a device."""
    try:
        torch.empty(1, device=device)
    # A torch without CUDA raises AssertionError.
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'device {device} cannot be used: {in_one_line(error)}') from error


def add_device_option(parser: ArgumentParser) -> None:
    """Add ``--device`` to a command line, one that torch can use."""
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', type=_usable_device, default=default, help='default: %(default)s')


def _usable_device(text: str) -> str:
    try:
        check_device(text)
    except InputError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def forward(model: nn.Module, x: Tensor):
    """Raw output for images (B, C, H, W): of a classifier or segmentor up to its head, or of a backbone."""
    return model(x, mode='tensor') if isinstance(model, BaseModel) else model(x)


def inference(model: nn.Module, x: Tensor, context: AbstractContextManager | None = None):
    """:func:`forward` as in a test: evaluation mode, no gradients, in a context such as autocast."""
    model.eval()
    # In inference_mode, autocast never caches a weight that it converts.
    with torch.no_grad(), context or nullcontext():
        return forward(model, x)


def describe_machine(device: torch.device) -> dict:
    """Circumstances that a figure depends on: processor or GPU, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor()
    machine = dict(device=name, threads=torch.get_num_threads(), torch=torch.__version__)
    return machine | dict(python=platform.python_version(), system=platform.system())


def in_words(machine: dict) -> str:
    """One line for what :func:`describe_machine` says, and for what else a figure depends on."""
    return ', '.join(f'{key} {value}' for key, value in machine.items())


def _processor() -> str:
    with suppress(OSError, TypeError):
        return re.search('model name.*: (.*)', Path('/proc/cpuinfo').read_text(encoding='utf-8'))[1]
    return platform.processor() or platform.machine()


def progress_bar() -> Progress:
    """A bar with the time left on stderr, so that stdout can be piped; hidden without a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU never runs ahead."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def interleaved_times(
    functions: dict[str, Callable[[], object]],
    device: torch.device,
    repeats: int = 10,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every run of the functions, which run in turn ``repeats`` times after an unmeasured round.

    They are interleaved so that noise of a shared machine hits all alike, and ratios hold.
    """
    if repeats < 1:
        raise InputError(f'repeats must be at least 1, got {repeats}')
    times = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if repeat:
                times[name].append(time.perf_counter() - start)
            advance()
    return times


def peak_memory(function: Callable[[], object], device: torch.device) -> float:
    """Bytes that running ``function`` needs beyond what is allocated before; a first call may need more.

    On a CPU: highest resident size of the process during the call, from /proc; NaN where there is none.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Memory that the allocator kept from earlier calls would hide the need of this one.
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')
        before = _status('VmRSS')
    except (OSError, AttributeError):
        function()
        return float('nan')
    function()
    return _status('VmHWM') - before


def _status(key: str) -> int:
    return 1024 * int(re.search(rf'{key}:\s*(\d+)', Path('/proc/self/status').read_text(encoding='utf-8'))[1])
