"""Time and memory of models side by side: inference and training steps over sizes.

    python tools/analysis_tools/benchmark.py configs/classification/visiongru-tiny_8xb128_in1k.py \
        swin-tiny_16xb64_in1k deit-small_4xb256_in1k --sizes 224 512

In bfloat16 on a CPU, by autocast, which converts the weights in the first pass, and with converted weights:

    python tools/analysis_tools/benchmark.py mmvisiongru.VisionGRU:tiny mmpretrain.SwinTransformer:tiny \
        --sizes 224 512 1024 --dtype float32 bfloat16 bfloat16-weights

A model is a config (of either task) by file or name, a model of mmpretrain or mmseg, or a backbone such as
mmpretrain.ConvNeXt:tiny. On a CPU all of them are converted by mmvisiongru.optimize_for_inference before
inference is timed. Runs of the models are interleaved and medians are reported, so that the ratios to the
first one hold on a busy machine, too.
"""

import argparse
import json
import os.path as osp
import statistics
import sys
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from itertools import product
from logging import ERROR

import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmvisiongru import measure
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder, write_text
from mmvisiongru.inference import optimize_for_inference
from mmvisiongru.launch.options import SettingsAction, at_least_one, one_line_errors
from mmvisiongru.models.layers.precision import converted_once
from mmvisiongru.zoo import build_model, image_channels, model_config

# Values of --dtype: autocast to the dtype; with '-weights' the model itself is converted, for inference.
AUTOCAST = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
CONVERTED = {f'{name}-weights': AUTOCAST[name] for name in ('bfloat16', 'float16')}
PRECISIONS = (*AUTOCAST, *CONVERTED)
PRECISIONS_HELP = 'other than float32: autocast to it, or run a model whose weights were converted to it'


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'models', nargs='+', help='configs by file or name, models of mmpretrain or mmseg, or backbones'
    )
    parser.add_argument('--sizes', nargs='+', type=at_least_one, default=[224], help='sides of square images')
    parser.add_argument('--batch-size', type=at_least_one, default=1)
    parser.add_argument('--mode', choices=['inference', 'train', 'both'], default='inference')
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=PRECISIONS,
        default=['float32'],
        help=PRECISIONS_HELP,
    )
    parser.add_argument('--cfg-options', nargs='+', action=SettingsAction, help='settings over each config')
    measure.add_device_option(parser)
    parser.add_argument(
        '--backend', help='backend of the scan of VisionGRU and of Bi-WKV (default: that of the config)'
    )
    parser.add_argument(
        '--repeats', type=int, default=10, help='timed runs of each model after an untimed one'
    )
    parser.add_argument(
        '--no-optimize',
        action='store_true',
        help='inference on a CPU: time the models as built, not through optimize_for_inference',
    )
    parser.add_argument('--json', metavar='FILE', help='write the figures to this file')
    return parser.parse_args(argv)


def in_precision(
    model: nn.Module, x: Tensor, precision: str
) -> tuple[nn.Module, Tensor, AbstractContextManager]:
    """A model and its input in one of PRECISIONS, and the context to call it in."""
    if dtype := CONVERTED.get(precision):
        return deepcopy(model).to(dtype), x.to(dtype), nullcontext()
    dtype = AUTOCAST[precision]
    return model, x, torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)


def runnable(model, x, precision: str, mode: str, optimize: bool):
    """A function to time: one inference pass, or one training step (forward, backward, AdamW)."""
    if optimize and mode == 'inference' and x.device.type == 'cpu':
        model = optimize_for_inference(deepcopy(model))
    model, x, autocast = in_precision(model, x, precision)
    if mode == 'inference':
        return partial(measure.inference, model, x, autocast)
    optimizer = torch.optim.AdamW(model.parameters())

    def train():
        model.train()
        with autocast:
            out = measure.forward(model, x)
            loss = (out[0] if isinstance(out, (tuple, list)) else out).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def measure_models(models: dict, args) -> list[dict]:
    """One row per model, size and mode."""
    device, rows = torch.device(args.device), []
    modes = ('inference', 'train') if args.mode == 'both' else (args.mode,)
    total = len(args.sizes) * len(modes) * len(models) * len(args.dtype) * (args.repeats + 1)
    with measure.progress_bar() as bar:
        task = bar.add_task('', total=total)
        for size, mode in product(args.sizes, modes):
            bar.update(task, description=f'{mode} {size} x {size}')
            functions = {}
            for (name, model), precision in product(models.items(), args.dtype):
                name = name if len(args.dtype) == 1 else f'{name}, {precision}'
                x = torch.randn(args.batch_size, image_channels(model), size, size, device=device)
                functions[name] = runnable(model, x, precision, mode, not args.no_optimize)
            with converted_once() if mode == 'inference' else nullcontext():
                times = measure.interleaved_times(functions, device, args.repeats, lambda: bar.advance(task))
            memory = {name: measure.peak_memory(f, device) for name, f in functions.items()}
            rows += [_row(name, size, mode, args.batch_size, times[name], memory[name]) for name in functions]
    first = rows[0]['model']
    base = {(row['size'], row['mode']): row for row in rows if row['model'] == first}
    for row in rows:
        row['time_ratio'] = base[row['size'], row['mode']]['latency_ms'] / row['latency_ms']
    return rows


def _row(name, size, mode, batch_size, seconds, memory) -> dict:
    median = statistics.median(seconds)
    return dict(
        model=name,
        size=size,
        mode=mode,
        batch_size=batch_size,
        latency_ms=1e3 * median,
        fastest_ms=1e3 * min(seconds),
        images_per_s=batch_size / median,
        peak_memory_mb=memory / 2**20,
    )


def print_table(rows: list[dict], machine: dict) -> None:
    """Print the rows, and what the figures depend on above them."""
    # Where there is no terminal to fit, names matter more than 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(measure.in_words(machine))
    table = Table('model', 'mode', 'batch', 'size', 'ms', 'fastest ms', 'images/s', 'peak MB', 'first / this')
    for row in rows:
        table.add_row(
            row['model'],
            row['mode'],
            str(row['batch_size']),
            str(row['size']),
            *(f'{row[k]:.1f}' for k in ('latency_ms', 'fastest_ms', 'images_per_s', 'peak_memory_mb')),
            f'{row["time_ratio"]:.2f}',
        )
    console.print(table)


def main(argv=None):
    """Measure, print, and write what was asked for."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    with one_line_errors():
        if args.mode != 'inference' and CONVERTED.keys() & set(args.dtype):
            raise InputError(
                f'--dtype {", ".join(CONVERTED)} are for inference; to train, autocast to a dtype'
            )
        # A config is named after its file.
        names = [osp.basename(model).removesuffix('.py') for model in args.models]
        if len({*names}) < len(names):
            raise InputError(f'models to compare must have different names, got {", ".join(names)}')
        models = {
            name: build_model(model_config(model, args.cfg_options), args.backend).to(args.device)
            for name, model in zip(names, args.models, strict=True)
        }
        if args.json:
            check_folder(osp.dirname(args.json) or '.')
        rows = measure_models(models, args)
        machine = measure.describe_machine(torch.device(args.device)) | dict(
            dtype=' '.join(args.dtype),
            backend=args.backend or 'of the config',
            repeats=args.repeats,
            optimized=not args.no_optimize,
        )
        print_table(rows, machine)
        if args.json:
            write_text(args.json, json.dumps(dict(machine=machine, rows=rows), indent=1))


if __name__ == '__main__':
    main()
