"""Time and memory of the operators, of VisionGRU-tiny beside its peers, and of both UperNet heads."""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmvisiongru import measure, zoo
from mmvisiongru.inference import optimize_for_inference
from mmvisiongru.ops import bi_wkv, mingru_scan_2d

# Configs by the names in the tables.
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


def timed(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Milliseconds that a call takes on the device, and on the host, which launches it."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == 'cuda' else ()
    measure.synchronize(device)
    start = time.perf_counter()
    for part in (*(e.record for e in events[:1]), function, *(e.record for e in events[1:])):
        part()
    host = 1e3 * (time.perf_counter() - start)
    measure.synchronize(device)
    return events[0].elapsed_time(events[1]) if events else host, host


def compare(builders: dict[str, Callable], device: torch.device, deadline: float) -> tuple[list, list[str]]:
    """Time what ``builders`` build, interleaved, up to a time of ``time.perf_counter``.

    Returns a row of figures for each, with its ratio to the first one, and what was skipped and why.
    """
    rows, functions, skipped = [], {}, []
    for name, build in builders.items():
        if time.perf_counter() > deadline:
            skipped.append(f'{name}: no time left')
            continue
        try:
            functions[name] = build()
            rows.append(
                dict(name=name, times=[], peak_mb=measure.peak_memory(functions[name], device) / 2**20)
            )
        # Out of memory, or a library that is not installed.
        except Exception as failure:
            skipped.append(f'{name}: {" ".join(str(failure).split())[:100]}')
    while rows and len(rows[0]['times']) < MAX_ROUNDS:
        if rows[0]['times'] and time.perf_counter() > deadline:
            break
        for row in rows:
            row['times'].append(timed(functions[row['name']], device))
    for row in rows:
        row['runs'] = len(row['times'])
        row['ms'], row['host_ms'] = map(statistics.median, zip(*row.pop('times'), strict=True))
        row['ratio'] = rows[0]['ms'] / row['ms']
    return rows, skipped


def operator_builders(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> dict:
    """A copy, and both operators in inference and training."""
    B, H, W = shape
    x = torch.randn(*shape, 2 * WIDTH, device=device, dtype=dtype)
    k, v = x.view(B, H * W, -1).chunk(2, -1)
    w, u = torch.linspace(-5, 3, WIDTH, device=device) / (H * W), torch.zeros(WIDTH, device=device)

    def training(function: Callable, *inputs: Tensor) -> Callable[[], object]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        cotangent = torch.ones_like(function(*leaves))
        return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)

    functions = {'scan': (mingru_scan_2d, x), 'bi_wkv': (bi_wkv, w, u, k, v)}
    builders = {'copy': lambda: partial(torch.empty_like(x).copy_, x)}
    builders |= {name: partial(partial, torch.no_grad()(f[0]), *f[1:]) for name, f in functions.items()}
    return builders | {f'{name}, training': partial(training, *f) for name, f in functions.items()}


def model_builders(models: dict, training: bool, side: int, device: torch.device) -> dict:
    """An inference or a training step of each model; on a GPU in autocast to bfloat16."""
    x = torch.randn(BATCHES[device.type, side], 3, side, side, device=device)

    def step(model: nn.Module) -> None:
        with torch.set_grad_enabled(training), torch.autocast('cuda', torch.bfloat16, x.is_cuda):
            out = measure.forward(model, x)
        if training:
            out.float().square().mean().backward()
            model.zero_grad()

    def build(make: Callable) -> Callable[[], None]:
        model = make().to(device).train(training)
        fast = not training and device.type == 'cpu'
        return partial(step, optimize_for_inference(model) if fast else model)

    return {name: partial(build, make) for name, make in models.items()}


def report(title: str, rows: list[dict], tokens: int) -> str:
    """A table in Markdown; ``tokens`` of a call to an operator, or 0 for models."""
    columns = {'': '{name}', 'time of the first / time': '{ratio:.2f}'}
    if tokens:
        for row in rows:
            row.update(share=MOVED[row['name']] / MOVED['copy'] * row['ratio'], rate=1e3 * tokens / row['ms'])
        columns = {'': '{name}', 'bandwidth / copy': '{share:.2f}', 'tokens / s': '{rate:.2e}'}
    columns |= {'ms': '{ms:.2f}', 'host ms': '{host_ms:.2f}', 'peak MB': '{peak_mb:.0f}', 'runs': '{runs}'}
    lines = [columns, ['---'] * len(columns), *([c.format(**row) for c in columns.values()] for row in rows)]
    return '\n'.join([f'\n{title}\n', *(f'| {" | ".join(line)} |' for line in lines)])


def bench(minutes: float, file: str | None = None) -> None:
    """Print tables in Markdown, and write all figures to a JSON file."""
    MMLogger.get_instance('mmengine', log_level='WARNING')
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    groups = {f'Operators, {m}': (m[0] * m[1] * m[2], operator_builders, m, dtype) for m in MAPS}
    models = {name: partial(zoo.build_model, config) for name, config in CLASSIFIERS.items()}
    configs = {head: zoo.model_config(UPERNET, {'model.decode_head.type': head}) for head in HEADS}
    heads = {head: partial(zoo.build_model, config) for head, config in configs.items()}
    for name, make, side in (('Models', models, 224), ('Models', models, 512), ('UperNet', heads, 512)):
        for kind in ('inference', 'training'):
            title = f'{name}, {kind}, {BATCHES[device.type, side]} x {side} x {side}'
            groups[title] = (0, model_builders, make, kind == 'training', side)
    machine = measure.describe_machine(device) | dict(dtype=str(dtype)[6:])
    print(', '.join(f'{key} {value}' for key, value in machine.items()))
    start, results = time.perf_counter(), {}
    for n, (title, (tokens, builders, *arguments)) in enumerate(groups.items()):
        now = time.perf_counter()
        # Operators take a fraction of the time of models.
        share = (start + 60 * minutes - now) / (len(groups) - n) / (4 if tokens else 1)
        rows, skipped = compare(builders(*arguments, device), device, now + share)
        print(report(title, rows, tokens), *(f'Skipped {line}' for line in skipped), sep='\n', flush=True)
        results[title] = dict(rows=rows, skipped=skipped)
    print(f'\n{time.perf_counter() - start:.0f} s of {60 * minutes:.0f} s')
    if file:
        with open(file, 'w', encoding='utf-8') as out:
            json.dump(dict(machine=machine, results=results), out, indent=1)
