"""Decode heads of this package beside those of mmseg, in whole models: time, memory and operations.

    OMP_NUM_THREADS=2 python benchmarks/heads.py
    python benchmarks/heads.py visiongru-tiny_upernet_8xb2-160k_ade20k-512x512 --dtype bfloat16 --device cuda

Both models have the same weights, run interleaved, and for inference on a CPU are converted by
optimize_for_inference. Ratios are this package's head over mmseg's, medians; below 1 is better. Memory is
what a call needs on top of the model. Without arguments all of MODELS in float32 take about 15 minutes on two
cores.
"""

import argparse
import gc
import statistics
import sys
from functools import partial
from logging import ERROR
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmvisiongru import measure, optimize_for_inference
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.zoo import build_model, model_config
from tools.analysis_tools.flops import count

MODELS = (
    'visiongru-tiny_upernet_8xb2-160k_ade20k-512x512',
    'visiongru-base_upernet_8xb2-160k_ade20k-512x512',
    'visiongru-tiny_segformer_8xb2-160k_ade20k-512x512',
    'swin-tiny_upernet_8xb2-160k_ade20k-512x512',
)


def build_both(name: str) -> dict[str, nn.Module]:
    """A model with the head of its config and with mmseg's, with the same weights."""
    cfg = model_config(name)
    ours = build_model(cfg)
    theirs = Config(cfg.to_dict())
    for head in filter(None, (theirs.model.decode_head, theirs.model.get('auxiliary_head'))):
        head.type = 'mmseg.' + head.type.rpartition('.')[2]
    theirs = build_model(theirs)
    theirs.load_state_dict(ours.state_dict())
    return dict(ours=ours, mmseg=theirs)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, dtype: torch.dtype) -> None:
    """One step with random labels, the same at each call."""
    labels = torch.randint(model.num_classes, x.shape[2:], generator=torch.Generator().manual_seed(0))
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels[None].to(x.device)))
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        losses = model(x, [sample] * len(x), mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    optimizer.step()
    optimizer.zero_grad()


def prepare(model: nn.Module, mode: str, size: tuple[int, int], args) -> partial:
    """A call to measure: an image, or a training step of two."""
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    model.to(device).train(mode == 'train')
    x = torch.randn(2 if mode == 'train' else 1, 3, *size, device=device)
    if mode == 'train':
        return partial(train, model, torch.optim.AdamW(model.parameters(), 1e-6), x, dtype)
    if device.type == 'cpu' and not args.no_optimize:
        optimize_for_inference(model)

    def run():
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            measure.inference(model, x)

    return run


def compare(name: str, mode: str, size: tuple[int, int], args) -> dict:
    """Median seconds, bytes and GMACs of both models in one mode."""
    device, models = torch.device(args.device), build_both(name)
    macs = {key: count(model, size)['macs'] / 1e9 for key, model in models.items()} if mode != 'train' else {}
    runs = {key: prepare(model, mode, size, args) for key, model in models.items()}
    times = measure.interleaved_times(runs, device, args.repeats)
    found = dict(seconds={key: statistics.median(value) for key, value in times.items()}, macs=macs)
    if args.memory:
        found['memory'] = {key: measure.peak_memory(run, device) for key, run in runs.items()}
    return found


def cell(values: dict[str, float], unit: float, form: str) -> str:
    """The ratio, and both values behind it."""
    if not values:
        return ''
    both = ' / '.join(format(values[key] / unit, form) for key in ('ours', 'mmseg'))
    return f'{values["ours"] / values["mmseg"]:.2f} ({both})'


def side(text: str) -> tuple[int, int]:
    """'512' or '512x683' as height and width."""
    height, _, width = text.partition('x')
    return int(height), int(width or height)


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='*', help='configs of segmentors (default: those of MODELS)')
    parser.add_argument('--sizes', nargs='+', type=side, default=[(512, 512)], help='N or HxW')
    parser.add_argument('--modes', nargs='+', choices=('inference', 'train'), default=('inference', 'train'))
    dtypes = ('float32', 'bfloat16', 'float16')
    parser.add_argument('--dtype', choices=dtypes, default='float32', help='autocast to this type')
    measure.add_device_option(parser)
    parser.add_argument('--repeats', type=int, default=5, help='timed runs of each after an untimed one')
    parser.add_argument(
        '--no-optimize', action='store_true', help='on a CPU, do not convert both models for inference'
    )
    parser.add_argument('--memory', action='store_true', help='measure peak memory too')
    return parser.parse_args(argv)


def main(argv=None):
    """Measure and print one row per model, mode and size."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    table = Table('model', 'mode', 'size', 'time (ms)', 'memory (MB)', 'GMACs')
    with one_line_errors():
        for name in args.models or MODELS:
            for mode in args.modes:
                for size in args.sizes:
                    found = compare(name, mode, size, args)
                    memory = cell(found.get('memory', {}), 2**20, '.0f')
                    row = cell(found['seconds'], 1e-3, '.0f'), memory, cell(found['macs'], 1, '.1f')
                    table.add_row(name.partition('_8xb2')[0], mode, '{}x{}'.format(*size), *row)
                    gc.collect()
    machine = measure.describe_machine(torch.device(args.device))
    machine |= dict(dtype=args.dtype, optimized=not args.no_optimize, repeats=args.repeats)
    console = Console(width=120)
    console.print(table)
    console.print(measure.in_words(machine))


if __name__ == '__main__':
    main()
