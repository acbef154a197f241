"""Train several configs with several seeds each, and compare the results.

    python experiments/compare_training.py CONFIG... --seeds 0 1 2 3 4 --out experiments/evidence/NAME

Every config is trained and tested with every seed, in one process per run, `--jobs` at a time. Checkpoints
and logs are in the work dir. Writes OUT/results.csv (every run), OUT/configs.csv (parameters, FLOPs, memory),
OUT/README.md (table) and OUT/results.png. The same command continues after an interruption: finished runs
are not repeated, on whatever machine, and an interrupted run resumes. The reason of a failed run is printed
and is on the page. `--report` writes page and figure from the two tables and needs no configs.

With GPUs: `--launcher pytorch --gpus 8` gives each run eight of them; without a launcher each job gets one.
"""

import argparse
import signal
import sys
from pathlib import Path

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.results import Results
from experiments.training import Process, Run, fraction, measure_costs, plan, run_all
from experiments.training_report import write_report
from mmvisiongru import measure
from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import SettingsAction, at_least_one, one_line_errors
from tools.analysis_tools.analyze_logs import decimals


class Watch:
    """Progress bar on a terminal, and one line per finished run everywhere."""

    def __init__(self, runs: list[Run], results: Results, bar):
        self.results, self.bar, self.total = results, bar, len(runs)
        waiting = [run for run in runs if run.key not in results.runs]
        self.ended = len(runs) - len(waiting)
        self.task = bar.add_task('', total=len(runs), completed=self.ended + sum(map(fraction, waiting)))

    def __call__(self, processes: list[Process], ended: list[Run]) -> None:
        """Show how far the processes are, and the runs that just ended."""
        running = [process.run for process in processes]
        for run in ended:
            self.ended += 1
            line = f'[{self.ended}/{self.total}] {self.outcome(run)}'
            self.bar.console.print(line, markup=False, soft_wrap=True)
        done = self.ended + sum(map(fraction, running))
        self.bar.update(self.task, completed=done, description=' | '.join(run.title for run in running))

    def outcome(self, run: Run) -> str:
        """The result of a run, or why there is none."""
        if run.error:
            return f'{run.title}: failed: {run.error}'
        row = self.results.runs[run.key]
        value = f'{row["value"]:.{decimals(row["metric"])}f}'
        return f'{run.title}: {row["metric"]} {value} in {row["seconds"]:.0f} s'


def outstanding(runs: list[Run], results: Results) -> list[str]:
    """Lines for the page on the runs without a result."""
    missing = [run for run in runs if run.key not in results.runs]
    lines = [f'- {run.title}: {f"failed: {run.error}" if run.error else "not run"}' for run in missing]
    return ['Without a result:', '', *lines, ''] if lines else []


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='*', help='configs; the others are compared with the first')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--out', required=True, help='folder for results, page and figure')
    parser.add_argument('--work-dir', help='folder for checkpoints and logs (default: work_dirs/NAME_OF_OUT)')
    parser.add_argument('--jobs', type=at_least_one, default=1, help='number of runs at a time')
    parser.add_argument('--launcher', choices=['none', 'pytorch'], default='none')
    gpus = 'processes per run, with --launcher pytorch'
    parser.add_argument('--gpus', type=at_least_one, default=1, help=gpus)
    parser.add_argument('--report', action='store_true', help='run nothing, only write page and figure')
    parser.add_argument('--cfg-options', nargs='+', action=SettingsAction, help='settings for all configs')
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Run what is missing, then write page and figure. Returns 1 if a run failed."""
    args = parse_args(argv)
    results = Results(Path(args.out))
    work_dir = Path(args.work_dir or Path('work_dirs') / results.folder.name)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runs = []
    with one_line_errors():
        if args.report and not results.runs:
            raise InputError(f'{args.out} has no results.csv to report on')
        if not args.report:
            if not args.configs:
                raise InputError('name the configs to train, or give --report')
            if args.gpus > 1 and args.launcher == 'none':
                raise InputError(f'--gpus {args.gpus} needs --launcher pytorch')
            runs = plan(args.configs, args.seeds, results, work_dir, args.cfg_options, args.gpus)
            with measure.progress_bar() as bar:
                run_all(runs, results, args.jobs, args.launcher, args.gpus, Watch(runs, results, bar))
            measure_costs(runs, results)
        write_report(results, outstanding(runs, results))
    return int(any(run.error for run in runs))


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('stopped; the same command continues')
