"""Build the digits, train VisionGRU-pico on them, evaluate it, draw its predictions.

    python tools/misc/quickstart.py segmentation

tools/quickstart.sh makes the environment and calls this. It runs the same scripts
that you would run by hand. Writes summary.json and predictions.png into the task's work_dir.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import mmengine
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmvisiongru.files import write_text

SCENES = Path('data/digits/segmentation')
DIGITS = Path('data/digits/classification')


@dataclass(frozen=True)
class Task:
    """What differs between the two tasks."""

    config: str
    work_dir: Path
    last_checkpoint: str
    # Name in the summary to name in the log.
    metrics: dict[str, str]
    # Where `tools/test.py --out` puts the predictions, inside work_dir.
    predictions: str
    held_out: str
    majority: Callable[[], dict[str, float]]
    draw: Callable[[Config, Path], plt.Figure]
    next_config: str


def read(path: Path) -> np.ndarray:
    """An image file as an array."""
    return np.asarray(Image.open(path))


def majority_of_scenes() -> dict[str, float]:
    """Metrics, in percent, of predicting background everywhere."""
    labels = np.stack([read(path) for path in (SCENES / 'annotations/validation').iterdir()])
    share = 100 * float(np.mean(labels == 0))
    # The IoU of background is then its share, and that of each digit that occurs is 0.
    return dict(mIoU=share / len(np.unique(labels)), aAcc=share)


def majority_of_digits() -> dict[str, float]:
    """Metrics, in percent, of predicting the commonest training digit, or five, whatever the image."""
    train, val = (
        np.array([sum(1 for _ in (DIGITS / split / str(digit)).iterdir()) for digit in range(10)])
        for split in ('train', 'val')
    )
    share = 100 * (val / val.sum())[np.argsort(-train)]
    return dict(top1=float(share[0]), top5=float(share[:5].sum()))


def draw_scenes(cfg: Config, predictions: Path) -> plt.Figure:
    """The first six scenes of the validation set, what is in them, and what the model sees."""
    classes, palette = (cfg.test_dataloader.dataset.metainfo[key] for key in ('classes', 'palette'))
    palette = np.array(palette, np.uint8)
    figure, axes = plt.subplots(3, 6, figsize=(12, 7), layout='constrained')
    for column, path in zip(axes.T, sorted((SCENES / 'images/validation').iterdir()), strict=False):
        label = read(SCENES / 'annotations/validation' / path.name)
        pictures = (read(path), palette[label], palette[read(predictions / path.name)])
        for axis, picture in zip(column, pictures, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
    for axis, text in zip(axes[:, 0], ('image', 'ground truth', 'prediction'), strict=True):
        axis.set_ylabel(text)
    handles = [Patch(color=colour / 255, label=text) for text, colour in zip(classes, palette, strict=True)]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(classes), frameon=False)
    return figure


def draw_digits(_: Config, predictions: Path) -> plt.Figure:
    """Up to twenty mistakes on the validation set, in red, then every tenth other digit."""
    results = [(r['img_path'], int(r['gt_label']), int(r['pred_label'])) for r in mmengine.load(predictions)]
    wrong = [r for r in results if r[1] != r[2]]
    right = [r for r in results if r[1] == r[2]]
    figure, axes = plt.subplots(4, 10, figsize=(12, 6), layout='constrained')
    for axis in axes.flat:
        axis.axis('off')
    for axis, (path, truth, guess) in zip(axes.flat, wrong[:20] + right[::10], strict=False):
        axis.imshow(Image.open(path), cmap='gray')
        axis.set_title(f'{truth}, predicted {guess}', fontsize=9, color='black' if truth == guess else 'red')
    return figure


TASKS = dict(
    segmentation=Task(
        config='configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py',
        work_dir=Path('work_dirs/quickstart'),
        last_checkpoint='iter_1000.pth',
        metrics=dict(mIoU='mIoU', aAcc='aAcc'),
        predictions='predictions',
        held_out='data/digits/segmentation/images/validation/*.png',
        majority=majority_of_scenes,
        draw=draw_scenes,
        next_config='configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py',
    ),
    classification=Task(
        config='configs/classification/visiongru-pico_1xb64_digits.py',
        work_dir=Path('work_dirs/quickstart_classification'),
        last_checkpoint='epoch_20.pth',
        metrics=dict(top1='accuracy/top1', top5='accuracy/top5'),
        predictions='predictions.pkl',
        held_out='data/digits/classification/val/*/*.png',
        majority=majority_of_digits,
        draw=draw_digits,
        next_config='configs/classification/visiongru-tiny_8xb128_in1k.py',
    ),
)


def run(*command, show=('',), each=lambda: None):
    """Run a script of the repository and print those lines of its output that hold one of `show`.

    After each line, shown or not, `each` is called.
    """
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
            each()
            if any(text in line for text in show):
                print(' ', line.rstrip(), flush=True)
    if process.returncode:
        sys.exit(f'{"".join(lines[-15:])}quickstart: {command[0]} failed, see above')


def train(task: Task, cfg: Config) -> float:
    """Train, or go on, or reuse what was trained with the same config. Returns the seconds it took."""
    record = task.work_dir / 'training.json'
    fresh = dict(config=hashlib.sha256(cfg.pretty_text.encode()).hexdigest(), seconds=0.0)
    known = json.loads(record.read_text(encoding='utf-8')) if record.exists() else {}
    if known.get('config') != fresh['config']:
        for checkpoint in (*task.work_dir.glob('*.pth'), *task.work_dir.glob('last_checkpoint')):
            print(f'{checkpoint}: of another config, removed')
            checkpoint.unlink()
        known = fresh
    if (task.work_dir / task.last_checkpoint).exists():
        print(f'{task.work_dir / task.last_checkpoint}: already trained, reused')
        return known['seconds']

    task.work_dir.mkdir(parents=True, exist_ok=True)
    before, start = known['seconds'], time.time()

    def note():
        known['seconds'] = before + time.time() - start
        write_text(str(record), json.dumps(known))

    note()
    try:
        run(
            *('tools/train.py', task.config, '--work-dir', task.work_dir, '--resume'),
            show=('Iter(', 'Epoch(', 'resumed epoch', 'Error'),
            # While it runs: nothing is left to a last moment that a killed process does not have.
            each=note,
        )
    finally:
        note()
    return known['seconds']


def evaluate(task: Task) -> dict[str, float]:
    """Metrics of the trained model; its predictions are written on the way."""
    folder = task.work_dir / 'test'
    checkpoint, out = task.work_dir / task.last_checkpoint, task.work_dir / task.predictions
    run(
        *('tools/test.py', task.config, checkpoint, '--work-dir', folder, '--out', out),
        show=('(test)', 'Error'),
    )
    # One folder a run, named after its time.
    metrics = json.loads(max(folder.glob('*/*.json')).read_text(encoding='utf-8'))
    return {name: round(float(metrics[key]), 2) for name, key in task.metrics.items()}


def evaluate_untrained(task: Task, cfg: Config) -> dict[str, float]:
    """Metrics of the model as it is before training."""
    cfg = Config(dict(cfg.to_dict(), work_dir=str(task.work_dir / 'untrained'), log_level='ERROR'))
    # What mmengine says about this one would only distract.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        metrics = Runner.from_cfg(cfg).test()
    return {name: round(float(metrics[key]), 2) for name, key in task.metrics.items()}


def report(task: Task, name: str, summary: dict) -> str:
    """What was measured and what to do next."""
    rows = [('trained here', summary), *((key, summary[key]) for key in ('untrained', 'majority class'))]
    table = '\n'.join(
        f'  {label:15}' + ''.join(f'{metric} {values[metric]:6.2f}   ' for metric in task.metrics)
        for label, values in rows
    )
    other = next(key for key in TASKS if key != name)
    return f"""
On {summary['held_out']} held-out images, in percent:
{table}
Training took {summary['train_seconds']:.0f} s on {summary['device']}.
  picture     {summary['picture']}
  checkpoint  {summary['checkpoint']}
  summary     {task.work_dir / 'summary.json'}
Next:
  bash tools/quickstart.sh {other}
  {task.config}: copy it and change a line, train with `python tools/train.py CONFIG`
  {task.next_config}: the paper's model, for `bash tools/dist_train.sh CONFIG GPUS`
  docs/custom_dataset.md: your own data"""


def main():
    """Do all steps of one task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('task', choices=TASKS)
    name = parser.parse_args().task
    task = TASKS[name]
    cfg = Config.fromfile(task.config)

    print('\n== 1. Data', flush=True)
    run('tools/dataset_converters/digits.py', '--task', name)
    print('\n== 2. Training', flush=True)
    seconds = train(task, cfg)
    print('\n== 3. Evaluation on the held-out images', flush=True)
    metrics = evaluate(task)
    untrained = evaluate_untrained(task, cfg)

    picture = task.work_dir / 'predictions.png'
    figure = task.draw(cfg, task.work_dir / task.predictions)
    figure.suptitle(f'{task.config}\n' + ', '.join(f'{key} {value:.2f}' for key, value in metrics.items()))
    figure.savefig(picture, dpi=120)
    summary = {
        **metrics,
        'untrained': untrained,
        'majority class': {key: round(value, 2) for key, value in task.majority().items()},
        'train_seconds': round(seconds, 1),
        'device': torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f'{torch.get_num_threads()} of {os.cpu_count()} CPU cores',
        'held_out': len(list(Path().glob(task.held_out))),
        'config': task.config,
        'checkpoint': str(task.work_dir / task.last_checkpoint),
        'picture': str(picture),
    }
    (task.work_dir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
    print(report(task, name, summary))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\nquickstart: interrupted; run the same command to go on')
