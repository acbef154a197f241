"""Train several configs with several seeds each, and compare what they reach.

    python experiments/compare_training.py CONFIG... --seeds 0 1 2 3 4 --out docs/evidence/NAME

Every config is trained and tested with every seed, in one process per run, `--jobs` at a time. Results go to
OUT/runs, checkpoints and logs to the work dir. The same command goes on where it was stopped: what has a
result is not run again, on whatever machine, and an interrupted run resumes. A run that fails is named in the
table. Writes OUT/results.csv, OUT/README.md and OUT/results.png; `--report` does only that, with the runs
that are finished.

With GPUs: `--launcher pytorch --gpus 8` gives each run eight of them; without a launcher each job gets one.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from mmengine.config import DictAction

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.training import Run, fraction, keep_costs, plan, run_all
from experiments.training_report import write_report
from mmvisiongru.analysis import measure
from mmvisiongru.launch.options import one_line_errors


class Watch:
    """A bar with the time left on a terminal, a line a finished run everywhere."""

    def __init__(self, runs: list[Run], bar):
        self.runs, self.bar, self.began = runs, bar, time.time()
        self.ended = {run.title for run in runs if run.record()}
        # What earlier calls did says nothing about how fast this one is.
        self.before = self.done = len(self.ended) + sum(self._fractions(runs))
        self.task = bar.add_task('', total=len(runs), completed=self.before)

    def _fractions(self, runs) -> list[float]:
        return [fraction(run) for run in runs if run.title not in self.ended]

    def __call__(self, processes, ended: list[Run]) -> None:
        """Show where the processes are and which runs ended."""
        self.ended |= {run.title for run in ended}
        self.done = len(self.ended) + sum(self._fractions([process.run for process in processes]))
        now = ' | '.join(process.run.title for process in processes)
        self.bar.update(self.task, completed=self.done, description=now)
        for run in ended:
            self.bar.console.print(f'[{len(self.ended)}/{len(self.runs)}] {self.outcome(run)}; {self.left()}')

    @staticmethod
    def outcome(run: Run) -> str:
        """What became of a run, in a line."""
        record = run.record()
        if not record:
            return f'{run.title}: failed: {run.error}'
        return f'{run.title}: {record["metric"]} {record["value"]:.2f} in {record["seconds"]:.0f} s'

    def left(self) -> str:
        """The time left at the pace so far."""
        pace = (time.time() - self.began) / max(self.done - self.before, 1e-3)
        return f'about {pace * (len(self.runs) - self.done) / 60:.0f} min left'


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', help='configs; the others are compared with the first')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--out', required=True, help='folder for results, table and figure')
    parser.add_argument('--work-dir', help='folder for checkpoints and logs (default: work_dirs/NAME_OF_OUT)')
    parser.add_argument('--jobs', type=int, default=1, help='number of runs at a time')
    parser.add_argument('--launcher', choices=['none', 'pytorch'], default='none')
    parser.add_argument('--gpus', type=int, default=1, help='processes per run, with --launcher pytorch')
    parser.add_argument('--report', action='store_true', help='run nothing, only write table and figure')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='settings over those of all configs'
    )
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Run what is missing, then write table and figure. Returns 1 if a run failed."""
    args = parse_args(argv)
    out = Path(args.out)
    work_dir = Path(args.work_dir or Path('work_dirs') / out.name)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with one_line_errors():
        runs = plan(args.configs, args.seeds, out, work_dir, args.cfg_options, args.gpus)
        if not args.report:
            with measure.progress_bar() as bar:
                run_all(runs, args.jobs, args.launcher, args.gpus, Watch(runs, bar))
        costs = keep_costs(runs, out)
        write_report(runs, costs, args.cfg_options or {}, out)
    return int(any(run.error for run in runs))


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('stopped; the same command goes on')
