"""Confusion matrix of a classifier (images) or a segmentor (pixels) on its test split.

    python tools/analysis_tools/confusion_matrix.py CONFIG CHECKPOINT --out work_dirs/confusion

Writes OUT.csv, counts with one row for each true and one column for each predicted class, and OUT.png and
OUT.pdf, the percentage of each row. Prints the confusions that cost most of a true class. Pixels that the
metric of the config ignores are not counted.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.runner import Runner
from torch import Tensor

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.config import get_config
from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import TESTING, prepare_test
from tools.outputs import check_figure, data_folders, stem
from tools.visualization.figures import save_figure

# With more classes the values in the cells cannot be read.
MOST_VALUES = 25
# Inches that a class takes with a value in its cell, and with its name alone.
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
        """Keep the matrix; the log would print it as a metric."""
        classes = len(self.dataset_meta['classes'])
        self.matrix = results[0].view(classes, classes)
        return {}


def confusion_matrix(runner: Runner) -> tuple[Tensor, list[str]]:
    """Test. Returns counts (true, predicted) and the names of the classes."""
    loop = runner.test_loop
    ignored = [m.ignore_index for m in loop.evaluator.metrics if hasattr(m, 'ignore_index')]
    metric = Confusion(*ignored[:1])
    loop.evaluator = Evaluator([metric])
    loop.evaluator.dataset_meta = loop.dataloader.dataset.metainfo
    runner.test()
    return metric.matrix, list(metric.dataset_meta['classes'])


def draw(matrix: Tensor, classes: list[str]) -> Figure:
    """The picture: every class with its name, and percentages where they can be read."""
    percent = (100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)).round().long()
    with_values = len(classes) <= MOST_VALUES
    side = max(4, (CELL if with_values else TICK) * len(classes))
    figure = Figure(figsize=(side + 2, side + 1), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(percent.numpy(), cmap='Greys', vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, fraction=0.046, label='percent of the true class')
    axes.set(xlabel='predicted', ylabel='true')
    size = 9 if with_values else 7
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    for row, values in enumerate(percent.tolist() if with_values else ()):
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
    """Test in one process, whose log nobody needs."""
    if cfg.get('default_scope') == 'mmdet':
        raise InputError('a confusion matrix is for classifiers and segmentors, not for detectors of mmdet')
    cfg.launcher = 'none'
    cfg.work_dir = args.work_dir
    check_figure(args.out, data_folders(cfg))


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', type=stem, default='work_dirs/confusion', help='write OUT.csv, OUT.png and OUT.pdf'
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Test, then write."""
    args = parse_args(argv)
    with one_line_errors(args.debug), TemporaryDirectory() as args.work_dir:
        cfg = get_config(args.config, args.cfg_options, TESTING)
        merge_args(cfg, args)
        matrix, classes = confusion_matrix(prepare_test(cfg, args.checkpoint))
        rows = [[name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)]
        written = save_figure(draw(matrix, classes), [['true \\ predicted', *classes], *rows], args.out)
    print('\n'.join(worst_confusions(matrix, classes)))
    print(f'{matrix.trace() / matrix.sum():.2%} of {matrix.sum()} on the diagonal: {written}')


if __name__ == '__main__':
    main()
