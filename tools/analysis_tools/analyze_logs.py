"""Curves and summary of training runs of both tasks, from the JSON logs that mmengine writes.

    python tools/analysis_tools/analyze_logs.py work_dirs/RUN_A work_dirs/RUN_B \
        --keys loss mIoU --out work_dirs/curves

A run is a work dir or one `scalars.json`. Of a work dir the newest run is taken; a resumed run is one curve.
Validation metrics are drawn at the last iteration that was logged before them. Writes OUT.png, OUT.pdf and
OUT.csv.
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import one_line_errors
from tools.outputs import check_figure, stem
from tools.visualization.figures import save_figure

# One of them is what a run is about.
METRICS = ('mIoU', 'accuracy/top1', 'coco/bbox_mAP')


def decimals(metric: str) -> int:
    """Decimals that a metric is shown with: mmdet's are shares of 1, the others percentages."""
    return 4 if metric.startswith('coco/') else 2


def log_files(run: str) -> tuple[dict[Path, int | None], list[Path]]:
    """The logs of the newest run of a work dir, the oldest first, and those of runs before it.

    A run is a training and those that resumed it. Each log of the newest one comes with the iteration that
    it was resumed at, as the text log says, or None if it started afresh.
    """
    path = Path(run)
    if path.is_file():
        return {path: resumed_at(path)}, []
    # The folders are named after the time at which they were made.
    files = sorted(path.glob('*/vis_data/scalars.json')) or sorted(path.glob('vis_data/scalars.json'))
    if not files:
        raise InputError(
            f'no log in {run}: expected a scalars.json, or a work dir with TIME/vis_data/scalars.json'
        )
    starts = {file: resumed_at(file) for file in files}
    first = max((i for i, file in enumerate(files) if starts[file] is None), default=0)
    return {file: starts[file] for file in files[first:]}, files[:first]


def resumed_at(log: Path) -> int | None:
    """The iteration that a training was resumed at; None if it started afresh."""
    logs = log.absolute().parents[1].glob('*.log')
    texts = (file.read_text(encoding='utf-8', errors='replace') for file in logs)
    found = (re.search(r'resumed epoch: \d+, iter: (\d+)', text) for text in texts)
    return next((int(match[1]) for match in found if match), None)


def read_run(run: str) -> tuple[dict, dict]:
    """Values of a run.

    Returns:
        tuple[dict, dict]: Of training and of validation: {key: {iteration: value}}. What came
        after the iteration that a run was resumed at is dropped.
    """
    train, validation, steps = defaultdict(dict), defaultdict(dict), {}
    for file, start in log_files(run)[0].items():
        if start is not None:
            for values in (*train.values(), *validation.values()):
                for undone in [i for i in values if i > start]:
                    del values[undone]
        iteration, lines = None, file.read_text(encoding='utf-8').splitlines()
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                # The last line of a run that was killed.
                if number < len(lines):
                    raise InputError(f'{file}:{number} is not JSON; is it a log of mmengine?') from None
                continue
            # Only lines of training carry `iter`; a validation's `step` may count epochs.
            iteration = values.get('iter', iteration)
            if 'iter' not in values:
                # A resumed run may start with the validation that was due, before any line of training.
                known = steps.get(values.get('step'), max(train['iter'], default=0))
                iteration = known if iteration is None else iteration
                steps[values.get('step')] = iteration
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    (train if 'iter' in values else validation)[key][iteration] = value
    return train, validation


def curves(runs: dict[str, tuple[dict, dict]], key: str) -> tuple[dict[str, dict[int, float]], list[str]]:
    """Values of a key over iterations for each run that has it, of training if that does.

    Returns:
        tuple[dict, list[str]]: Values by run, and one line for each run without.

    Raises:
        InputError: No run has it.
    """
    found, missing = {}, []
    for run, (train, validation) in runs.items():
        if values := train.get(key) or validation.get(key):
            found[run] = dict(sorted(values.items()))
        else:
            known = ', '.join(sorted({*train, *validation} - {'iter', 'step', 'epoch'}))
            missing.append(f'{run} has no {key!r} in its log; it has {known}')
    if not found:
        raise InputError('; '.join(missing))
    return found, missing


def summarize(runs: dict[str, tuple[dict, dict]]) -> Table:
    """One row a run: how far it came, its loss, metric, median step time and peak GPU memory."""
    names = ('iter', 'loss', 'metric', 'last', 'best', 'at', 's / iter', 'MB')
    table = Table(*(Column(name, overflow='fold') for name in ('run', *names)))
    for run, (train, validation) in runs.items():
        row = [run, str(max(train['iter'], default=0))]
        loss = train.get('loss', {})
        row.append(f'{loss[max(loss)]:.4f}' if loss else '')
        metric = next((key for key in METRICS if key in validation), None)
        if metric:
            values = validation[metric]
            best = max(values, key=values.get)
            last, highest = (f'{values[i]:.{decimals(metric)}f}' for i in (max(values), best))
            row += [metric, last, highest, str(best)]
        else:
            row += [''] * 4
        times, memory = train.get('time', {}), train.get('memory', {})
        row.append(f'{statistics.median(times.values()):.3f}' if times else '')
        row.append(str(max(memory.values())) if memory else '')
        table.add_row(*row)
    return table


def draw(runs: dict[str, tuple[dict, dict]], keys: list[str]) -> tuple[Figure, list[tuple], list[str]]:
    """One panel a key, one line a run; its table; a line for each run that lacks a key."""
    figure = Figure(figsize=(5 * len(keys), 4), layout='constrained')
    axes, rows = figure.subplots(1, len(keys), squeeze=False), [('run', 'key', 'iteration', 'value')]
    missing, names = [], [Path(run).name for run in runs]
    for key, axis in zip(keys, axes[0], strict=True):
        found, without = curves(runs, key)
        missing += without
        for i, run in enumerate(runs):
            if (values := found.get(run)) is None:
                continue
            marker = 'osd^v'[i % 5] if len(values) < 30 else None
            style = ('-', '--', ':', '-.')[i % 4]
            rows += [(run, key, *point) for point in values.items()]
            label = names[i] if names.count(names[i]) == 1 else run
            axis.plot(*zip(*values.items(), strict=True), linestyle=style, marker=marker, label=label)
        axis.set(xlabel='iteration', ylabel=key)
        axis.grid(True, alpha=0.3)
        axis.legend(fontsize='small')
    return figure, rows, missing


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', nargs='+', help='work dirs, or scalars.json files')
    parser.add_argument('--keys', nargs='+', default=['loss'], help='what to draw, e.g. loss lr mIoU')
    parser.add_argument('--out', type=stem, help='draw the curves: write OUT.png, OUT.pdf and OUT.csv')
    return parser.parse_args(argv)


def main(argv=None):
    """Summarize, and draw if asked."""
    args = parse_args(argv)
    with one_line_errors():
        runs = {run: read_run(run) for run in args.runs}
        for run in args.runs:
            if skipped := [log.parents[1].name for log in log_files(run)[1]]:
                print(f'{run}: logs of earlier runs are left out: {", ".join(skipped)}', file=sys.stderr)
        Console().print(summarize(runs))
        if args.out:
            figure, rows, missing = draw(runs, args.keys)
            check_figure(args.out)
            print(f'{", ".join(args.keys)}: {save_figure(figure, rows, args.out)}')
            for line in missing:
                print(line, file=sys.stderr)


if __name__ == '__main__':
    main()
