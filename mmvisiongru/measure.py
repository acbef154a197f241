"""Time and memory of a function, on machines that others use too."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Of a GPU's clock: about 50 ms.
PAUSE_CYCLES = 100_000_000


def describe_machine(device: torch.device) -> dict:
    """What a figure depends on: processor or GPU, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor()
    machine = dict(device=name, threads=torch.get_num_threads(), torch=torch.__version__)
    return machine | dict(python=platform.python_version(), system=platform.system())


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def progress_bar() -> Progress:
    """A bar with the time left, on stderr, so that stdout can be piped; none where no terminal shows it."""
    from rich.console import Console

    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


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
    """Run the functions in turn, ``repeats`` times, after one unmeasured round.

    Turns, not blocks: what disturbs a shared machine then disturbs all of them, and ratios hold.

    Returns:
        dict[str, list[float]]: Seconds of every run.
    """
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


def launched_times(
    functions: dict[str, Callable[[], object]],
    device: torch.device,
    repeats: int = 10,
    advance: Callable[[], None] = lambda: None,
    calls: int = 10,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times of a GPU and of the host that gives it work, of functions in turn as in interleaved_times.

    A clock around a call shows the two together: mostly the launch, below about 200 microseconds of work.
    Here the calls are queued behind a pause of the GPU. It does them between two events, without a
    gap, while the host is timed alone. On a CPU there is one time, and none of a host.

    Returns:
        tuple: Seconds of a call on the device and on the host, for every function and repeat.
    """
    if device.type != 'cuda':
        return interleaved_times(functions, device, repeats, advance), {name: [] for name in functions}
    device_times, host_times = ({name: [] for name in functions} for _ in range(2))
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            synchronize(device)
            # Longer than the host needs for all calls, at any clock of a GPU.
            torch.cuda._sleep(PAUSE_CYCLES)
            begin.record()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            host = time.perf_counter() - start
            end.record()
            synchronize(device)
            if repeat:
                device_times[name].append(begin.elapsed_time(end) / 1e3 / calls)
                host_times[name].append(host / calls)
            advance()
    return device_times, host_times


def median(values: Iterable[float]) -> float:
    """Median, or NaN of nothing."""
    values = list(values)
    return statistics.median(values) if values else float('nan')


def peak_memory(function: Callable[[], object], device: torch.device) -> float:
    """Bytes that running ``function`` needs on top of what is held before it.

    On a CPU: highest resident size of the process while it runs, from /proc, NaN where there is none.
    """
    function()
    return peak_growth(function, device)


def peak_growth(function: Callable[[], object], device: torch.device) -> float:
    """As :func:`peak_memory`, in a single call."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    return growth(function)


def growth(function: Callable[[], object]) -> float:
    """Bytes by which the process is larger at most while ``function`` runs, NaN where there is no /proc."""
    try:
        # Memory that the allocator kept from earlier runs would hide what this one needs.
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
        before = _status('VmRSS')
        function()
        return _status('VmHWM') - before
    except (OSError, AttributeError):
        return float('nan')


def _status(key: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ':'))


def copy_bandwidth(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes read and written a second by a copy of ``size`` bytes, the best of five."""
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    times = interleaved_times({'copy': lambda: target.copy_(source)}, device, repeats=5)
    return 2 * size / min(times['copy'])
