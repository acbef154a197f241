"""Confusion matrix of a classifier (images) or a segmentor (pixels) on its test split.

    python tools/analysis_tools/confusion_matrix.py CONFIG CHECKPOINT --out work_dirs/confusion

Writes OUT.csv, counts with one row for each true and one column for each predicted class, and OUT.png, the
percentage of each row. Prints the confusions that cost most of a true class.
"""

import argparse
import csv
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.runner import Runner
from torch import Tensor

from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import prepare_test

# With more classes numbers in the cells cannot be read.
MOST_VALUES = 25
# Inches that a class takes with a number in its cell, and with its name alone.
CELL, TICK = 0.4, 0.16
# Confusions that are printed.
WORST = 10


class Confusion(BaseMetric):
    """Counts (true, predicted) of the images, or of the pixels that are not ignored."""

    def __init__(self, ignore_index: int = 255):
        super().__init__()
        self.ignore_index = ignore_index

    def process(self, data_batch, data_samples):
        """Add the counts of a batch to those so far: a matrix for each image would fill the memory."""
        classes = len(self.dataset_meta['classes'])
        total = self.results.pop() if self.results else torch.zeros(classes**2, dtype=torch.int64)
        for sample in data_samples:
            if 'gt_sem_seg' in sample:
                true, predicted = (sample[k]['data'].cpu().flatten() for k in ('gt_sem_seg', 'pred_sem_seg'))
                keep = true != self.ignore_index
                true, predicted = true[keep], predicted[keep]
            else:
                true, predicted = (sample[key].cpu() for key in ('gt_label', 'pred_label'))
            pairs = true.long() * classes + predicted.long()
            total += pairs.bincount(minlength=classes**2)
        self.results.append(total)

    def compute_metrics(self, results):
        """The counts as a matrix."""
        classes = len(self.dataset_meta['classes'])
        return dict(result=results[0].view(classes, classes))


def confusion_matrix(runner: Runner) -> tuple[Tensor, list[str]]:
    """Test. Returns counts (true, predicted) and the names of the classes."""
    loop = runner.test_loop
    metainfo = loop.dataloader.dataset.metainfo
    loop.evaluator = Evaluator([Confusion()])
    loop.evaluator.dataset_meta = metainfo
    return runner.test()['result'], list(metainfo['classes'])


def write(matrix: torch.Tensor, classes: list[str], out: Path) -> None:
    """Write the table and the picture."""
    import matplotlib

    matplotlib.use('Agg')
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f'{out.name}.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['true \\ predicted', *classes])
        writer.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    percent = (100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)).round().long()
    figure = draw(percent, classes)
    figure.savefig(out.parent / f'{out.name}.png', dpi=100, bbox_inches='tight')


def draw(percent: Tensor, classes: list[str]):
    """The picture: every class with its name, numbers where they can be read."""
    from matplotlib import pyplot as plt

    with_values = len(classes) <= MOST_VALUES
    side = max(4, (CELL if with_values else TICK) * len(classes))
    figure, axes = plt.subplots(figsize=(side, side))
    image = axes.imshow(percent, cmap='Greys', vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, fraction=0.046, label='percent of the true class')
    axes.set(xlabel='predicted', ylabel='true')
    size = 9 if with_values else 7
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    if with_values:
        for row, values in enumerate(percent.tolist()):
            for column, value in enumerate(values):
                color = 'black' if value < 50 else 'white'
                axes.text(column, row, value, ha='center', va='center', color=color, fontsize=8)
    return figure


def worst_confusions(matrix: Tensor, classes: list[str], most: int = WORST) -> list[str]:
    """One line for each of the confusions that cost the largest share of a true class."""
    wrong = matrix - matrix.diag().diag()
    shares = wrong / matrix.sum(1, keepdim=True).clamp(min=1)
    order = shares.flatten().sort(descending=True, stable=True).indices[:most].tolist()
    pairs = [divmod(i, len(classes)) for i in order]
    return [
        f'{shares[true, predicted]:6.1%} of {classes[true]} is taken for {classes[predicted]} '
        f'({wrong[true, predicted]} of {matrix[true].sum()})'
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def merge_args(cfg: Config, args) -> None:
    """Test in one process, with the log beside the result."""
    cfg.launcher = 'none'
    cfg.setdefault('work_dir', str(Path(args.out).parent))


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', default='work_dirs/confusion', help='write OUT.csv and OUT.png')
    return parser.parse_args(argv)


def main(argv=None):
    """Test, then write."""
    args = parse_args(argv)
    out = Path(args.out)
    with one_line_errors(args.debug):
        matrix, classes = confusion_matrix(prepare_test(args, merge_args))
    write(matrix, classes, out)
    print('\n'.join(worst_confusions(matrix, classes)))
    print(f'{matrix.trace() / matrix.sum():.2%} of {matrix.sum()} on the diagonal: {out}.csv, {out}.png')


if __name__ == '__main__':
    main()
