"""Figure 1 of the paper: parameters, FLOPs, peak memory and time against the resolution.

    python benchmarks/resolution.py --out docs/figures/resolution_cpu
    python benchmarks/resolution.py --out docs/figures/resolution_gpu --device cuda

Writes OUT.csv and OUT.png. Operations are counted by tools/analysis_tools/flops.py. Memory and time of
inference are measured: runs of the models are interleaved at each size, and medians are written. The curve of
a model ends before the size that does not fit into memory. About 15 minutes on two CPU cores, most of them at
1536 and 2048.
"""

import argparse
import csv
import statistics
import sys
from functools import partial
from logging import ERROR
from pathlib import Path

import torch
from mmengine.logging import MMLogger

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.models import COMPARED, OVER_SIZES, build_for_inference
from mmvisiongru import measure
from mmvisiongru.measure import inference
from mmvisiongru.zoo import build_model
from tools.analysis_tools.flops import count
from tools.outputs import stem

STYLES = {
    'VisionGRU-tiny': dict(marker='o', linestyle='-', color='black', hatch=''),
    'VRWKV-S': dict(marker='d', linestyle='-.', color='black', hatch='xxx'),
    'Swin-T': dict(marker='s', linestyle='--', color='0.35', hatch='///'),
    'DeiT-S': dict(marker='^', linestyle=':', color='0.35', hatch='...'),
}
# GMACs at 1248 x 1248 in figure 1 of arXiv:2412.18178.
PAPER = {'VisionGRU-tiny': 151.9, 'DeiT-S': 432.3}
SIZES = [224, 384, 512, 640, 768, 1024, 1248, 1536, 2048]
PANELS = dict(gmacs='FLOPs / GMAC', peak_memory_mb='peak memory / MB', latency_ms='time / ms')


def measure_sizes(models: dict, sizes: list[int], batch_size: int, device, repeats: int) -> list[dict]:
    """One row per size and model: parameters, MACs of one image, memory and time of the batch."""
    rows, counted = [], {name: build_model(COMPARED[name]).to('meta') for name in models}
    with measure.progress_bar() as bar:
        task = bar.add_task('', total=len(sizes) * len(models) * (repeats + 1))
        for size in sizes:
            bar.update(task, description=f'{size} x {size}')
            x = torch.randn(batch_size, 3, size, size, device=device)
            runs = {name: partial(inference, model, x) for name, model in models.items()}
            memory = {name: measured_memory(run, device, f'{name} at {size}') for name, run in runs.items()}
            runs = {name: run for name, run in runs.items() if memory[name] is not None}
            times = measure.interleaved_times(runs, device, repeats, advance=lambda: bar.advance(task))
            for name in runs:
                found = count(counted[name], (size, size))
                rows.append(
                    dict(
                        model=name,
                        size=size,
                        parameters=found['parameters'],
                        gmacs=found['macs'] / 1e9,
                        peak_memory_mb=memory[name] / 2**20,
                        latency_ms=1e3 * statistics.median(times[name]),
                    )
                )
    return rows


def measured_memory(run, device, what: str) -> float | None:
    """Peak memory, or None and a line on the terminal if it does not fit."""
    try:
        # A first call may need more.
        run()
        return measure.peak_memory(run, device)
    except (torch.OutOfMemoryError, MemoryError):
        print(f'{what}: not enough memory')
        return None


def write_csv(rows: list[dict], machine: dict, path: Path) -> None:
    """Write the circumstances of the measurement as a comment, then one line per row."""
    with path.open('w', encoding='utf-8', newline='') as file:
        file.write(f'# {measure.in_words(machine)}\n')
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f'{v:.2f}' if isinstance(v, float) else v for k, v in row.items()})


def tick_labels(sizes: list[int]) -> list[str]:
    """One label per size, empty where it would overlap the one before: small sizes are close together."""
    labels, last = [], 0
    for size in sizes:
        apart = size**2 - last > 0.05 * sizes[-1] ** 2
        labels.append(f'{size}²' if apart else '')
        last = size**2 if apart else last
    return labels


def plot(rows: list[dict], machine: dict, path: Path) -> None:
    """Four panels; markers, dashes and hatches tell the models apart without colour."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 4.1), width_ratios=(0.7, 1, 1, 1))
    names = list(dict.fromkeys(row['model'] for row in rows))
    millions = [next(r['parameters'] for r in rows if r['model'] == name) / 1e6 for name in names]
    bars = axes[0].bar(names, millions, color='white', edgecolor='black')
    for name, bar in zip(names, bars, strict=True):
        bar.set_hatch(STYLES[name]['hatch'])
    axes[0].bar_label(bars, fmt='%.1f', padding=2)
    axes[0].set(ylabel='parameters / million', title='the same at every size')
    plt.setp(axes[0].get_xticklabels(), rotation=20, ha='right')
    axes[0].margins(y=0.1)
    sizes = sorted({row['size'] for row in rows})
    for axis, (key, label) in zip(axes[1:], PANELS.items(), strict=True):
        for name in names:
            points = [(r['size'] ** 2, r[key]) for r in rows if r['model'] == name]
            style = {k: v for k, v in STYLES[name].items() if k != 'hatch'}
            axis.plot(*zip(*points, strict=True), label=name, markerfacecolor='white', **style)
        # A cost that is linear in the number of pixels is a straight line.
        axis.set(xlabel='pixels', ylabel=label, xlim=(0, None), ylim=(0, None))
        axis.set_xticks([n * n for n in sizes], tick_labels(sizes), rotation=60)
        axis.grid(True, alpha=0.3)
    if 1248 in sizes:
        axes[1].plot([1248**2] * 2, list(PAPER.values()), 'kx', markersize=9, label="paper's figure")
    axes[1].legend(fontsize='small')
    figure.suptitle(measure.in_words(machine), fontsize='small')
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=stem, default='work_dirs/resolution', help='write OUT.csv and OUT.png')
    parser.add_argument('--sizes', nargs='+', type=int, default=SIZES)
    parser.add_argument('--batch-size', type=int, default=1)
    measure.add_device_option(parser)
    parser.add_argument(
        '--repeats', type=int, default=5, help='timed runs of each model and size after an untimed one'
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Measure, then write table and figure."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    device, out = torch.device(args.device), Path(args.out)
    models = {name: build_for_inference(COMPARED[name], device) for name in OVER_SIZES}
    rows = measure_sizes(models, sorted(args.sizes), args.batch_size, device, args.repeats)
    machine = measure.describe_machine(device) | dict(
        dtype='float32', batch=args.batch_size, repeats=args.repeats
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Not with_suffix: a name may hold a dot.
    write_csv(rows, machine, out.parent / f'{out.name}.csv')
    plot(rows, machine, out.parent / f'{out.name}.png')
    print(f'{out}.csv and {out}.png: {measure.in_words(machine)}')


if __name__ == '__main__':
    main()
