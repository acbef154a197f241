"""Time and memory of the operators, of VisionGRU-tiny beside its peers, and of both UperNet heads."""

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from itertools import product

import torch
from mmengine.logging import MMLogger
from torch import nn

from mmvisiongru import measure, zoo
from mmvisiongru.files import write_text
from mmvisiongru.inference import optimize_for_inference
from mmvisiongru.ops import bi_wkv, mingru, mingru_scan_2d, wkv

from .check import inputs, run

# Name in the tables: config.
CLASSIFIERS = {
    'VisionGRU-tiny': 'visiongru-tiny_8xb128_in1k',
    'VRWKV-S': 'vrwkv-small_8xb128_in1k',
    'Swin-T': 'swin-tiny_16xb64_in1k',
    'DeiT-S': 'deit-small_4xb256_in1k',
    'ConvNeXt-T': 'convnext-tiny_32xb128_in1k',
}
UPERNET = 'visiongru-tiny_upernet_8xb2-160k_ade20k-512x512'
HEADS = ('mmvisiongru.UPerHead', 'mmseg.UPerHead')
# Images per batch, by device and side. UperNet's batch norm needs two.
BATCHES = {('cuda', 224): 128, ('cuda', 512): 24, ('cpu', 224): 2, ('cpu', 512): 2}
MAPS = ((8, 56, 56), (1, 312, 312))
WIDTH = 288  # channels of the scan's states in the first stage of VisionGRU-tiny
# Bytes that an operator reads and writes, over those of the (B, H, W, 2 WIDTH) map that a copy moves.
MOVED = {'copy': 2, 'scan': 1.5, 'scan, training': 4.5, 'bi_wkv': 1.5, 'bi_wkv, training': 4}
MAX_ROUNDS = 20
# Parts of the time that a table of each kind gets.
SHARES = {'Operators': 1, 'Models': 4, 'UperNet': 8}


def timed(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Milliseconds that a call takes on the device, and on the host, which launches it."""
    measure.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == 'cuda' else []
    if events:
        # Half a millisecond of other work, which also clears the L2 cache: an idle GPU would start with the
        # first launch, and the time of a short call be that of its launches.
        for _ in range(8):
            _filler(device).zero_()
        events[0].record()
    start = time.perf_counter()
    function()
    host = 1e3 * (time.perf_counter() - start)
    if events:
        events[1].record()
    measure.synchronize(device)
    return events[0].elapsed_time(events[1]) if events else host, host


@cache
def _filler(device: torch.device) -> torch.Tensor:
    return torch.empty(1 << 28, dtype=torch.uint8, device=device)


def compare(builders: dict, device: torch.device, deadlines: list, work: float, rates: dict) -> tuple:
    """Time what ``builders`` build, interleaved; returns rows of figures, and what was skipped and why.

    Nothing begins that would not end by a time of ``time.perf_counter``: the second of ``deadlines`` for the
    first calls, the first one for more of them. ``rates``, updated here, has ms per unit of ``work`` by name.
    """

    def check(milliseconds: float, deadline: float) -> None:
        if time.perf_counter() + milliseconds / 1e3 >= deadline:
            raise TimeoutError('no time left')

    rows, functions, skipped = [], {}, []
    for name, build in builders.items():
        try:
            # To build it, to warm up, and to measure memory. What is new may be twice as slow as anything.
            check(3 * work * rates.get(name, 2 * max(rates.values(), default=0)), deadlines[1])
            function, times = build(), []
            rates[name] = timed(function, device)[0] / work
            check(work * rates[name], deadlines[1])
            peak = measure.peak_memory(lambda f=function, t=times: t.append(timed(f, device)), device)
            functions[name] = function
            rows.append(dict(name=name, times=times, peak_mb=peak / 2**20))
        # Out of time or memory, or a library that is not installed.
        except Exception as failure:
            skipped.append(f'{name}: {" ".join(str(failure).split())[:100]}')
    with suppress(TimeoutError):
        while rows and len(rows[0]['times']) <= MAX_ROUNDS:
            check(sum(max(row['times'])[0] for row in rows), deadlines[0])
            for row in rows:
                row['times'].append(timed(functions[row['name']], device))
    for row in rows:
        times = row.pop('times')
        # The first call had to get its memory from the system.
        times = times[1:] or times
        row['ms'], row['host_ms'] = map(statistics.median, zip(*times, strict=True))
        row |= dict(runs=len(times), ratio=rows[0]['ms'] / row['ms'])
        rates[row['name']] = row['ms'] / work
    return rows, skipped


def operator_builders(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> dict:
    """A copy, and both operators in inference and training."""
    x = torch.randn(*shape, 2 * WIDTH, device=device, dtype=dtype)
    builders = {'copy': lambda: partial(torch.empty_like(x).copy_, x)}
    operators = {'scan': (mingru_scan_2d, mingru.BACKENDS), 'bi_wkv': (bi_wkv, wkv.BACKENDS['paper'])}
    for name, (function, table) in operators.items():
        tensors = [t.to(device) for t in inputs(table, shape, WIDTH, dtype)]
        builders[name] = partial(partial, torch.no_grad()(function), *tensors[:-1])
        builders[f'{name}, training'] = partial(partial, run, function, tensors, 'auto')
    return builders


def model_builders(models: dict, training: bool, side: int, device: torch.device) -> dict:
    """An inference or a training step of each model; on a GPU in autocast to bfloat16."""
    x = torch.randn(BATCHES[device.type, side], 3, side, side, device=device)

    def step(model: nn.Module) -> None:
        with torch.set_grad_enabled(training), torch.autocast('cuda', torch.bfloat16, x.is_cuda):
            out = measure.forward(model, x)
        if training:
            out.float().square().mean().backward()
            model.zero_grad()

    def build(config) -> Callable[[], None]:
        model = zoo.build_model(config).to(device).train(training)
        fast = not training and device.type == 'cpu'
        return partial(step, optimize_for_inference(model) if fast else model)

    return {name: partial(build, config) for name, config in models.items()}


def report(title: str, rows: list[dict], tokens: int, dtype: torch.dtype) -> str:
    """A table in Markdown; ``tokens`` of a call to an operator in ``dtype``, or 0 for models."""
    columns = {'': '{name}', 'time of the first / time': '{ratio:.2f}'}
    if tokens:
        for row in rows:
            moved, rate = MOVED[row['name']], 1e3 * tokens / row['ms']
            row.update(share=moved / MOVED['copy'] * row['ratio'], rate=rate)
            row['gb_per_s'] = 1e-9 * moved * 2 * WIDTH * dtype.itemsize * rate
        columns = {'': '{name}', 'bandwidth / copy': '{share:.2f}', 'tokens / s': '{rate:.2e}'}
        columns['GB / s'] = '{gb_per_s:.0f}'
    columns |= {'ms': '{ms:.2f}', 'host ms': '{host_ms:.2f}', 'peak MB': '{peak_mb:.0f}', 'runs': '{runs}'}
    lines = [columns, ['---'] * len(columns), *([c.format(**row) for c in columns.values()] for row in rows)]
    return '\n'.join([f'\n{title}\n', *(f'| {" | ".join(line)} |' for line in lines)])


def bench(minutes: float, file: str | None, start: float) -> None:
    """Print tables in Markdown, and write all figures to a JSON file, in ``minutes`` from ``start`` on."""
    results, rates = {}, {}
    MMLogger.get_instance('mmengine', log_level='WARNING')
    device = torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    machine = measure.describe_machine(device) | dict(dtype=str(dtype)[6:])
    for table in (mingru.BACKENDS, wkv.BACKENDS['paper']):
        machine[table.operator] = table.describe('auto', device, dtype).partition(': ')[2]
    print(measure.in_words(machine))
    # Title of a table: the work of a call, and a function that gives the builders.
    groups = {f'Operators, {m}': (math.prod(m), partial(operator_builders, m, dtype, device)) for m in MAPS}
    heads = {head: zoo.model_config(UPERNET, {'model.decode_head.type': head}) for head in HEADS}
    tables = ('Models', CLASSIFIERS, 224), ('Models', CLASSIFIERS, 512), ('UperNet', heads, 512)
    for (name, models, side), (kind, passes) in product(tables, (('inference', 1), ('training', 3))):
        images = BATCHES[device.type, side]
        build = partial(model_builders, models, kind == 'training', side, device)
        groups[f'{name}, {kind}, {images} x {side} x {side}'] = passes * images * side**2, build
    shares = [SHARES[title.partition(',')[0]] for title in groups]
    for n, (title, (work, builders)) in enumerate(groups.items()):
        tokens, now = work if title.startswith('Operators') else 0, time.perf_counter()
        share = shares[n] / sum(shares[n:])
        # A tenth is left for calls that take longer than those before.
        deadlines = [now + part * (start + 54 * minutes - now) for part in (share, max(0.5, share))]
        rows, skipped = compare(builders(), device, deadlines, work, rates)
        lines = [report(title, rows, tokens, dtype), *(f'Skipped {line}' for line in skipped)]
        print(*lines, sep='\n', flush=True)
        results[title] = dict(rows=rows, skipped=skipped)
    print(f'\n{time.perf_counter() - start:.0f} s of {60 * minutes:.0f} s')
    if file:
        write_text(file, json.dumps(dict(machine=machine, results=results), indent=1))
