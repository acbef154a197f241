"""Build the digits, train VisionGRU-pico on them, evaluate it and draw its predictions.

    python tools/misc/quickstart.py segmentation

tools/quickstart.sh makes the environment and calls this. It runs the scripts that you would run by hand, and
leaves pictures and summary.json in the work dir of the task. An interrupted training goes on; a finished one
is reused: delete the work dir to train again.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """What differs between the two tasks."""

    config: str
    work_dir: Path
    last_checkpoint: str
    # Name in the summary to name in the log.
    metrics: dict[str, str]
    next_config: str


TASKS = dict(
    segmentation=Task(
        config='configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py',
        work_dir=Path('work_dirs/quickstart'),
        last_checkpoint='iter_1000.pth',
        metrics=dict(mIoU='mIoU', aAcc='aAcc'),
        next_config='configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py',
    ),
    classification=Task(
        config='configs/classification/visiongru-pico_1xb64_digits.py',
        work_dir=Path('work_dirs/quickstart_classification'),
        last_checkpoint='epoch_20.pth',
        metrics=dict(top1='accuracy/top1', top5='accuracy/top5'),
        next_config='configs/classification/visiongru-tiny_8xb128_in1k.py',
    ),
)


def run(*command, show=('',)) -> None:
    """Run a script of the repository and print those lines of its output that hold one of ``show``."""
    print('$ python', *command, flush=True)
    lines = []
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding='utf-8',
        env=dict(os.environ, PYTHONUNBUFFERED='1'),
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if any(text in line for text in show):
                print(' ', line.rstrip(), flush=True)
    if process.returncode:
        sys.exit(f'{"".join(lines[-15:])}quickstart: {command[0]} failed, see above')


def train(task: Task) -> None:
    """Train, go on, or reuse what was trained."""
    checkpoint = task.work_dir / task.last_checkpoint
    if checkpoint.exists():
        print(f'{checkpoint}: already trained, reused; delete {task.work_dir} to train again')
        return
    show = ('Iter(', 'Epoch(', 'resumed epoch', 'Error')
    run('tools/train.py', task.config, '--work-dir', task.work_dir, '--resume', show=show)


def evaluate(task: Task) -> dict[str, float]:
    """Metrics of the trained model; every tenth image is drawn on the way."""
    folder, pictures = task.work_dir / 'test', task.work_dir / 'pictures'
    options = ('--work-dir', folder, '--show-dir', pictures, '--interval', 10)
    checkpoint = task.work_dir / task.last_checkpoint
    run('tools/test.py', task.config, checkpoint, *options, show=('(test)', 'Error'))
    # A folder for each run, named after its time.
    metrics = json.loads(max(folder.glob('*/*.json')).read_text(encoding='utf-8'))
    return {name: round(float(metrics[key]), 2) for name, key in task.metrics.items()}


def report(name: str, summary: dict) -> str:
    """What was measured and what to do next."""
    task = TASKS[name]
    return f"""
On held-out images, in percent: {', '.join(f'{metric} {summary[metric]:.2f}' for metric in task.metrics)}
  pictures    {summary['pictures']}
  checkpoint  {summary['checkpoint']}
Next:
  bash tools/quickstart.sh {next(other for other in TASKS if other != name)}
  {task.config}: copy it and change a line, train with `python tools/train.py CONFIG`
  {task.next_config}: the paper's model, for `bash tools/dist_train.sh CONFIG GPUS`
  docs/custom_dataset.md: your own data"""


def main():
    """Do all steps of one task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('task', choices=TASKS)
    name = parser.parse_args().task
    task = TASKS[name]
    print('\n== 1. Data', flush=True)
    run('tools/dataset_converters/digits.py', '--task', name)
    print('\n== 2. Training', flush=True)
    train(task)
    print('\n== 3. Evaluation on the held-out images', flush=True)
    summary = {
        **evaluate(task),
        'config': task.config,
        'checkpoint': str(task.work_dir / task.last_checkpoint),
        'pictures': str(task.work_dir / 'pictures'),
    }
    (task.work_dir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
    print(report(name, summary))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\nquickstart: interrupted; run the same command to go on')
