"""Table and figure of training runs: what a config reaches over seeds, and how far it is from the first."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.training import Run
from mmvisiongru.files import check_folder, write_text

COLUMNS = ('config', 'seed', 'metric', 'value', 'iterations', 'seconds', 'seconds_per_iteration', 'error')


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and the ends of its interval by Student's t; the ends are NaN for fewer than two values."""
    from scipy.stats import t

    number, mean = len(values), statistics.fmean(values)
    if number < 2:
        return mean, math.nan, math.nan
    half = t.ppf((1 + level) / 2, number - 1) * statistics.stdev(values) / math.sqrt(number)
    return mean, mean - half, mean + half


def paired(values: dict[int, float], reference: dict[int, float]) -> list[float]:
    """Differences to the reference, seed by seed, where there are both."""
    return [value - reference[seed] for seed, value in sorted(values.items()) if seed in reference]


def write_report(runs: list[Run], costs: dict[str, dict], options: dict, out: Path) -> None:
    """Write OUT/results.csv, OUT/README.md and OUT/results.png of what is finished.

    Args:
        runs (list[Run]): All runs, finished, failed or still to come.
        costs (dict[str, dict]): Parameters, MACs and memory of each config, as
            :func:`experiments.training.keep_costs` gives them.
        options (dict): Settings over those of the configs.
        out (Path): Folder.
    """
    check_folder(str(out))
    records = {}
    for run in runs:
        configs = records.setdefault(run.name, {})
        if record := run.record():
            configs[run.seed] = record
    write_text(str(out / 'results.csv'), results_csv(runs, records))
    write_text(str(out / 'README.md'), markdown(runs, records, costs, options))
    if any(records.values()):
        draw(records, out / 'results.png')


def results_csv(runs: list[Run], records: dict[str, dict[int, dict]]) -> str:
    """A line a run, also of those that failed or are not there yet."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction='ignore', lineterminator='\n')
    table.writeheader()
    for run in runs:
        row = records[run.name].get(run.seed, dict(config=run.name, seed=run.seed, error=run.error))
        table.writerow(row)
    return text.getvalue()


def values_of(records: dict[int, dict]) -> dict[int, float]:
    """Metric of each seed."""
    return {seed: record['value'] for seed, record in records.items()}


def markdown(
    runs: list[Run], records: dict[str, dict[int, dict]], costs: dict[str, dict], options: dict
) -> str:
    """The page with the table."""
    first = next(iter(records))
    metric = next((record['metric'] for found in records.values() for record in found.values()), 'metric')
    lines = [
        f'# {metric} of {len(records)} configs',
        '',
        'Written by `experiments/compare_training.py`, which says how; every run is a line of',
        '[results.csv](results.csv), the curves are in the [figure](results.png).',
        '',
        f'{metric}: after the last iteration, mean over seeds with its 95 % interval (Student t).',
        f'Difference: to {first}',
        'with the same seed, mean with its 95 % interval. FLOPs: multiply-accumulates of an image of the',
        'size that the model trains with. Training: seconds of a run, start and test included. Memory:',
        'what a step of training needs beside model and data.',
        '',
        f'| config | params (M) | FLOPs (M) | seeds | {metric} | difference | training (s) | s / iteration '
        '| step memory (MB) |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    lines += [row(name, records, costs[name]) for name in records]
    if options:
        changes = ', '.join(f'`{key}={value}`' for key, value in options.items())
        lines += ['', f'All configs with {changes}.']
    lines += ['', *outstanding(runs), *machines(records)]
    return '\n'.join(lines) + '\n'


def row(name: str, records: dict[str, dict[int, dict]], cost: dict) -> str:
    """Row of a config."""
    found, reference = records[name], next(iter(records.values()))
    cells = [name, '', '', str(len(found)), '', '', '', '', '']
    if cost:
        cells[1:3] = f'{cost["parameters"] / 1e6:.2f}', f'{cost["macs"] / 1e6:.1f}'
        cells[8] = f'{cost["step_memory"] / 2**20:.0f}'
    if found:
        cells[4] = with_interval(list(values_of(found).values()))
        for i, key, digits in ((6, 'seconds', 0), (7, 'seconds_per_iteration', 3)):
            cells[i] = f'{statistics.median(record[key] for record in found.values()):.{digits}f}'
    differences = paired(values_of(found), values_of(reference))
    if differences and found is not reference:
        cells[5] = with_interval(differences, '+')
    return f'| {" | ".join(cells)} |'


def with_interval(values: Sequence[float], sign: str = '') -> str:
    """Mean with the ends of its interval, e.g. '43.20 [42.11, 44.29]'."""
    mean, low, high = interval(values)
    ends = '' if math.isnan(low) else f' [{low:{sign}.2f}, {high:{sign}.2f}]'
    return f'{mean:{sign}.2f}{ends}'


def outstanding(runs: list[Run]) -> list[str]:
    """What is missing in the table, and why."""
    failed = [f'- {run.title}: failed: {run.error}' for run in runs if run.error]
    lines = ['Failed:', '', *failed, ''] if failed else []
    missing = {}
    for run in runs:
        if not run.error and not run.record():
            missing.setdefault(run.name, []).append(str(run.seed))
    if missing:
        lines += ['Not finished:', '', *(f'- {name}: seed {", ".join(s)}' for name, s in missing.items()), '']
    return lines


def machines(records: dict[str, dict[int, dict]]) -> list[str]:
    """What the runs ran on, a line a kind."""
    found = [record['machine'] for seeds in records.values() for record in seeds.values()]
    texts = dict.fromkeys(', '.join(f'{key} {value}' for key, value in machine.items()) for machine in found)
    return [f'Run on: {text}.' for text in texts]


def labels(names: Sequence[str]) -> list[str]:
    """Names without the words at their end that all of them share."""
    words = [name.split('_') for name in names]
    while len(words) > 1 and all(len(w) > 1 and w[-1] == words[0][-1] for w in words):
        words = [w[:-1] for w in words]
    return ['_'.join(w) for w in words]


def draw(records: dict[str, dict[int, dict]], path: Path) -> None:
    """Dots, means and intervals; differences to the first config; loss and metric over iterations."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(19, 1.5 + 0.6 * max(len(records), 4)), layout='constrained')
    first = values_of(next(iter(records.values())))
    names = labels(list(records))
    for i, (name, found) in enumerate(zip(names, records.values(), strict=True)):
        values, color = values_of(found), f'C{i % 10}'
        for axis, shown in ((axes[0], list(values.values())), (axes[1], paired(values, first) if i else [])):
            _draw_interval(axis, i, shown, color)
        # A metric may have been taken once only.
        for axis, key, marker in ((axes[2], 'loss', ''), (axes[3], 'metric', '.')):
            for record in filter(lambda record: record['curves'][key], found.values()):
                look = dict(color=color, alpha=0.5, linewidth=0.8, marker=marker)
                axis.plot(*zip(*record['curves'][key], strict=True), **look)
        # One entry a config in the legend.
        axes[2].plot([], [], color=color, label=name)
    metric = next(record['metric'] for found in records.values() for record in found.values())
    axes[0].set(yticks=range(len(names)), yticklabels=names, xlabel=metric)
    axes[1].set(yticks=range(len(names)), yticklabels=[], xlabel=f'difference to {names[0]}, same seed')
    axes[1].axvline(0, color='gray', linewidth=0.8)
    axes[2].set(xlabel='iteration', ylabel='training loss')
    axes[3].set(xlabel='iteration', ylabel=metric)
    axes[2].legend(fontsize='small')
    for axis in axes[:2]:
        axis.set_ylim(len(names) - 0.5, -0.5)
    for axis in axes:
        axis.grid(True, alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_interval(axis, position: int, values: Sequence[float], color: str) -> None:
    if not values:
        return
    mean, low, high = interval(values)
    axis.plot(values, [position - 0.15] * len(values), 'o', color=color, alpha=0.6, markersize=5)
    axis.plot([low, high], [position + 0.15] * 2, color=color, linewidth=2)
    axis.plot(mean, position + 0.15, 'D', color=color, markersize=6)
