"""Table and figure of the results of training: metric over seeds, and its difference to the first config."""

import math
import re
import statistics
from collections.abc import Sequence

from experiments.results import Results
from mmvisiongru.files import write_text
from tools.analysis_tools.analyze_logs import decimals

# Metrics of mmseg and mmpretrain in percent: no mean lies outside of 0 to 100. Those of mmdet are shares.
PERCENT = re.compile(r'(accuracy|single-label|multi-label)/|[am](IoU|Acc|Dice|Fscore|Precision|Recall)$')
Bounds = tuple[float, float]
UNBOUNDED = (-math.inf, math.inf)


def bounds(metric: str) -> Bounds:
    """Smallest and largest possible value of a metric."""
    if metric.startswith('coco/'):
        return 0, 1
    return (0, 100) if PERCENT.match(metric) else UNBOUNDED


def difference_bounds(metric: str) -> Bounds:
    """Smallest and largest possible difference of two values of a metric."""
    low, high = bounds(metric)
    return low - high, high - low


def interval(values: Sequence[float], possible: Bounds = UNBOUNDED) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval by Student's t, cut to the possible values.

    The ends are NaN for fewer than two values.
    """
    from scipy.stats import t

    number, mean = len(values), statistics.fmean(values)
    if number < 2:
        return mean, math.nan, math.nan
    half = t.ppf(0.975, number - 1) * statistics.stdev(values) / math.sqrt(number)
    return mean, max(mean - half, possible[0]), min(mean + half, possible[1])


def paired(values: dict[int, float], reference: dict[int, float]) -> list[float]:
    """Differences to the reference with the same seed, where both have one."""
    return [value - reference[seed] for seed, value in sorted(values.items()) if seed in reference]


def write_report(results: Results, outstanding: Sequence[str] = ()) -> None:
    """Write README.md and results.png into the folder of the results.

    Args:
        results (Results): Without a result only the page is written.
        outstanding (Sequence[str]): Lines for the page: what failed or was not run, and why.
    """
    write_text(str(results.folder / 'README.md'), markdown(results, outstanding))
    if results.runs:
        draw(results)


def values_of(results: Results, config: str) -> dict[int, float]:
    """Metric of each seed of a config."""
    return {seed: row['value'] for seed, row in results.seeds_of(config).items()}


def metric_of(results: Results) -> str:
    """Name of the metric that is compared."""
    return next((row['metric'] for row in results.runs.values()), 'metric')


def markdown(results: Results, outstanding: Sequence[str]) -> str:
    """The page with the table."""
    names, metric, corrected = results.trained(), metric_of(results), p_values(results)
    lines = [
        f'# {metric} of {len(names)} configs',
        '',
        'Written by `experiments/compare_training.py`. [results.csv](results.csv) has every run with its',
        'curves, [configs.csv](configs.csv) every config, [results.png](results.png) the figure.',
        '',
        f'- {metric}: after the last iteration; mean over seeds with its 95 % interval (Student t).',
        f'- Difference: to {names[0] if names else "the first"} with the same seed; mean and interval alike.',
        '- FLOPs: multiply-accumulates for one image of the size that the model trains with.',
        '- p: that the difference is zero, by a paired t test, with the correction of Holm for all of them.',
        '- Step: median time of a training step without loading, the steps of all configs interleaved.',
        '- Memory: peak of a training step on top of model and data.',
        '',
        f'| config | params (M) | FLOPs (M) | seeds | {metric} | difference | p | step (ms) '
        '| step memory (MB) |',
        '|---|---|---|---|---|---|---|---|---|',
        *(row(results, name, names[0], corrected.get(name)) for name in names),
    ]
    for options in sorted({results.configs[name]['options'] for name in names} - {''}):
        having = [name for name in names if results.configs[name]['options'] == options]
        subject = 'All configs' if having == names else ', '.join(having)
        lines += ['', f'{subject} with {", ".join(f"`{option}`" for option in options.split(" "))}.']
    lines += ['', *outstanding]
    lines += [f'Run on: {text}.' for text in dict.fromkeys(row['machine'] for row in results.runs.values())]
    return '\n'.join(lines) + '\n'


def row(results: Results, name: str, first: str, p: float | None) -> str:
    """Row of a config; what is not known is empty."""
    config, metric = results.configs[name], metric_of(results)
    values, form = values_of(results, name), f'.{decimals(metric)}f'
    differences = paired(values, values_of(results, first)) if name != first else []
    fewer = f' ({len(differences)} seeds)' if len(differences) < len(values) else ''
    cells = [
        name,
        cost(config, 'parameters', 1e6, 2),
        cost(config, 'macs', 1e6, 1),
        str(len(values)),
        with_interval([*values.values()], bounds(metric), form),
        with_interval(differences, difference_bounds(metric), f'+{form}') + fewer if differences else '',
        '' if p is None else f'{p:.2g}',
        cost(config, 'step_seconds', 1e-3, 0),
        cost(config, 'step_memory', 2**20, 0),
    ]
    return f'| {" | ".join(cells)} |'


def cost(config: dict, key: str, unit: float, digits: int) -> str:
    """A cost of a config in a unit, or nothing where it was not measured."""
    return f'{float(config[key]) / unit:.{digits}f}' if config.get(key) else ''


def p_value(differences: Sequence[float]) -> float:
    """Probability of differences by a t test if their mean were zero; NaN where there is no test.

    There is none for fewer than two, for NaN, and for a constant, which leaves nothing to compare it with.
    """
    from scipy.stats import ttest_1samp

    # Without any difference there is no statistic, and no evidence of one.
    if len(differences) > 1 and not any(differences):
        return 1.0
    if len(differences) < 2 or math.isclose(min(differences), max(differences)):
        return math.nan
    return float(ttest_1samp(differences, 0).pvalue)


def p_values(results: Results) -> dict[str, float]:
    """Probability of each difference to the first config if there were none, corrected for their number.

    Two-sided paired t tests with the correction of Holm (1979); configs without a test have none.
    """
    names = results.trained()
    pairs = {name: paired(values_of(results, name), values_of(results, names[0])) for name in names[1:]}
    tested = {name: p for name, values in pairs.items() if not math.isnan(p := p_value(values))}
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(tested, key=tested.get)):
        largest = corrected[name] = max(largest, min(1.0, (len(tested) - rank) * tested[name]))
    return corrected


def with_interval(values: Sequence[float], possible: Bounds, form: str) -> str:
    """Mean with the ends of its interval, each in a format, e.g. '43.20 [42.11, 44.29]' for '.2f'."""
    mean, low, high = interval(values, possible)
    return f'{mean:{form}}' + ('' if math.isnan(low) else f' [{low:{form}}, {high:{form}}]')


def labels(names: Sequence[str]) -> list[str]:
    """Names without the words behind the first that all of them share."""
    words = [name.split('_') for name in names]
    shared = set.intersection(*map(set, words)) if len(names) > 1 else set()
    return ['_'.join([first, *(w for w in more if w not in shared)]) for first, *more in words]


def draw(results: Results) -> None:
    """Draw values, means and intervals, differences to the first config, and loss and metric curves."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    configs, metric = results.trained(), metric_of(results)
    size = (19, 1.5 + 0.6 * max(len(configs), 4))
    figure, axes = plt.subplots(1, 4, figsize=size, layout='constrained')
    first, names = values_of(results, configs[0]), labels(configs)
    for i, config in enumerate(configs):
        values, color = values_of(results, config), f'C{i % 10}'
        _draw_interval(axes[0], i, list(values.values()), bounds(metric), color)
        _draw_interval(axes[1], i, paired(values, first) if i else [], difference_bounds(metric), color)
        for axis, key, marker in ((axes[2], 'loss_curve', ''), (axes[3], 'metric_curve', '.')):
            for run in results.seeds_of(config).values():
                if run[key]:
                    look = dict(color=color, alpha=0.5, linewidth=0.8, marker=marker)
                    axis.plot(*zip(*run[key], strict=True), **look)
    axes[0].set(yticks=range(len(names)), yticklabels=names, xlabel=metric)
    axes[1].set(yticks=range(len(names)), yticklabels=[], xlabel='difference to the first, same seed')
    for i, label in enumerate(axes[0].get_yticklabels()):
        # In place of a legend.
        label.set_color(f'C{i % 10}')
    axes[1].axvline(0, color='gray', linewidth=0.8)
    axes[2].set(xlabel='iteration', ylabel='training loss')
    axes[3].set(xlabel='iteration', ylabel=metric)
    for axis in axes[2:]:
        axis.locator_params(axis='x', nbins=5)
    for axis in axes[:2]:
        axis.set_ylim(len(names) - 0.5, -0.5)
    for axis in axes:
        axis.grid(True, alpha=0.3)
    figure.savefig(results.folder / 'results.png', dpi=110)
    plt.close(figure)


def _draw_interval(axis, position: int, values: Sequence[float], possible: Bounds, color: str) -> None:
    if not values:
        return
    mean, low, high = interval(values, possible)
    axis.plot(values, [position - 0.15] * len(values), 'o', color=color, alpha=0.6, markersize=5)
    axis.plot([low, high], [position + 0.15] * 2, color=color, linewidth=2)
    axis.plot(mean, position + 0.15, 'D', color=color, markersize=6)
