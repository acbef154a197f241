"""Draw what a data set gives to the model, after augmentation and with labels. All tasks.

    python tools/visualization/browse_dataset.py configs/segmentation/CONFIG.py --out work_dirs/browse

Look at them before a long run: wrong colours, labels off by one and crops without content show at once.
"""

import argparse
import os.path as osp
import random
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.launch.model_checks import naming_empty
from mmvisiongru.launch.options import add_config_options, at_least_one, one_line_errors
from mmvisiongru.launch.prepare import building, prepare_config
from tools.outputs import check_output, counted, data_folders, output_paths, write_picture
from tools.visualization.drawing import as_rgb, draw_sample


def draw(cfg: Config, split: str, number: int, out: str) -> int:
    """Draw images spread over the split. Returns how many."""
    init_default_scope(cfg.default_scope)
    with building(cfg), naming_empty(cfg, f'{split}_dataloader'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        number = min(number, len(dataset))
        samples = [dataset[i * len(dataset) // number] for i in range(number)]
    # Test-time augmentation packs one view after the other.
    samples = [{k: v[0] if isinstance(v, list) else v for k, v in sample.items()} for sample in samples]
    # Images that a data set holds as arrays, as MNIST does, have no path.
    files = [osp.basename(sample['data_samples'].get('img_path', 'image')) for sample in samples]
    names = [f'{i:03d}_{file}' for i, file in enumerate(files)]
    paths = output_paths(names, out, root='.')
    for name, sample in zip(names, samples, strict=True):
        classes, palette = (dataset.metainfo.get(key) for key in ('classes', 'palette'))
        write_picture(
            paths[name], draw_sample(as_rgb(sample['inputs']), sample['data_samples'], classes, palette)
        )
    return number


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_options(parser)
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--number', type=at_least_one, default=16, help='images, spread over the split')
    parser.add_argument('--out', default='work_dirs/browse', help='folder for the pictures')
    parser.add_argument('--seed', type=int, default=0, help='seed of the augmentation')
    return parser.parse_args(argv)


def main(argv=None):
    """Draw."""
    args = parse_args(argv)
    loader = f'{args.split}_dataloader'
    with one_line_errors(args.debug):
        cfg = prepare_config(args, (loader, 'default_scope'), (loader,))
        check_output(args.out, data_folders(cfg))
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)
        number = draw(cfg, args.split, args.number, args.out)
        print(f'{counted(number, "picture")} in {args.out}')


if __name__ == '__main__':
    main()
