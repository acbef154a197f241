"""Confusion matrix of a classifier (images) or a segmentor (pixels) on its test split.

    python tools/analysis_tools/confusion_matrix.py CONFIG CHECKPOINT --out work_dirs/confusion

Writes OUT.csv, counts with one row a true and one column a predicted class, and OUT.png, percent of each row.
"""

import argparse
import csv
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.evaluator import BaseMetric, Evaluator
from mmpretrain.evaluation import ConfusionMatrix

from mmvisiongru.checkpoint import check_weights, read_weights, refuse_pickled_code
from mmvisiongru.launch.config import check_data, load_config
from mmvisiongru.launch.names import check_names
from mmvisiongru.launch.options import build_runner, one_line_errors
from mmvisiongru.launch.processes import prepare_launch

# With more classes numbers in the cells cannot be read.
MOST_VALUES = 25


class PixelConfusion(BaseMetric):
    """Confusion matrix over the pixels that are not ignored."""

    def __init__(self, ignore_index: int = 255):
        super().__init__()
        self.ignore_index = ignore_index

    def process(self, data_batch, data_samples):
        """Add the counts of a batch."""
        classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            predicted, true = (sample[key]['data'].cpu().flatten() for key in ('pred_sem_seg', 'gt_sem_seg'))
            keep = true != self.ignore_index
            self.results.append(ConfusionMatrix.calculate(predicted[keep], true[keep], classes))

    def compute_metrics(self, results):
        """Sum over the images."""
        return dict(result=sum(results))


def confusion_matrix(cfg: Config, checkpoint: str) -> tuple[torch.Tensor, list[str]]:
    """Test a checkpoint. Returns counts (true, predicted) and the names of the classes."""
    cfg.load_from, cfg.resume, cfg.launcher = checkpoint, False, 'none'
    weights = read_weights(checkpoint)
    prepare_launch(cfg)
    runner = build_runner(cfg)
    check_weights(runner.model, weights, checkpoint)
    loop = runner.test_loop
    metainfo = loop.dataloader.dataset.metainfo
    if cfg.default_scope == 'mmpretrain':
        metric = ConfusionMatrix(num_classes=len(metainfo['classes']))
    else:
        metric = PixelConfusion()
    loop.evaluator = Evaluator([metric])
    loop.evaluator.dataset_meta = metainfo
    metrics = runner.test()
    return next(value for key, value in metrics.items() if key.endswith('result')), list(metainfo['classes'])


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
    values = len(classes) <= MOST_VALUES
    figure = ConfusionMatrix.plot(percent, values, 'Greys', classes if values else None, show=False)
    figure.savefig(out.parent / f'{out.name}.png', dpi=100, bbox_inches='tight')


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', default='work_dirs/confusion', help='OUT.csv and OUT.png are written')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='settings over it, KEY=VALUE')
    return parser.parse_args(argv)


def main(argv=None):
    """Test, then write."""
    args = parse_args(argv)
    out = Path(args.out)
    with one_line_errors():
        refuse_pickled_code()
        required = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
        cfg = load_config(args.config, args.cfg_options, required)
        check_data(cfg, ('test_dataloader',))
        check_names(cfg)
        cfg.setdefault('work_dir', str(out.parent))
        matrix, classes = confusion_matrix(cfg, args.checkpoint)
    write(matrix, classes, out)
    print(f'{matrix.trace() / matrix.sum():.2%} of {matrix.sum()} on the diagonal: {out}.csv, {out}.png')


if __name__ == '__main__':
    main()
