"""Draw what a data set gives to the model, after augmentation and with labels. Both tasks.

    python tools/visualization/browse_dataset.py configs/segmentation/CONFIG.py --out work_dirs/browse

Look at them before a long run: wrong colours, labels off by one and crops without content show at once.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.structures import PixelData

from mmvisiongru.files import check_folder
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import building, prepare_config

# Small images are enlarged to this, so that labels can be read.
SHORT_SIDE = 256


def samples(cfg: Config, split: str, number: int) -> Iterator[tuple[str, np.ndarray, object, dict]]:
    """File name, RGB image, annotation and meta data of images spread over the split."""
    with building(cfg):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    number = min(number, len(dataset))
    for i in range(number):
        item = dataset[i * len(dataset) // number]
        image, annotation = item['inputs'], item['data_samples']
        if isinstance(image, list):
            # Test-time augmentation packs one view after the other.
            image, annotation = image[0], annotation[0]
        # Images are read with the channels in the order BGR; the preprocessor of the model turns them.
        rgb = image.flip(0).permute(1, 2, 0).contiguous().numpy()
        yield f'{i:03d}_{Path(annotation.img_path).stem}.png', rgb, annotation, dataset.metainfo


def draw(cfg: Config, split: str, number: int, out: Path) -> int:
    """Draw the samples with the visualizer of the task. Returns how many."""
    init_default_scope(cfg.default_scope)
    with building(cfg):
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, name='browse', vis_backends=None))
    drawn = 0
    for name, image, annotation, metainfo in samples(cfg, split, number):
        visualizer.dataset_meta = metainfo
        image, annotation = enlarge(image, annotation, max(1, SHORT_SIDE // min(image.shape[:2])))
        out_file = str(out / name)
        if cfg.default_scope == 'mmpretrain':
            visualizer.visualize_cls(image, annotation, draw_pred=False, out_file=out_file)
        else:
            visualizer.add_datasample(name, image, annotation, draw_pred=False, out_file=out_file)
        drawn += 1
    return drawn


def enlarge(image: np.ndarray, annotation, factor: int) -> tuple[np.ndarray, object]:
    """Repeat the pixels of image and label map."""
    image = image.repeat(factor, 0).repeat(factor, 1)
    if 'gt_sem_seg' in annotation:
        labels = annotation.gt_sem_seg.data
        labels = labels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        annotation.gt_sem_seg = PixelData(data=labels)
    return image, annotation


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_options(parser)
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--number', type=int, default=16, help='number of images, spread over the split')
    parser.add_argument('--out', default='work_dirs/browse', help='folder for the pictures')
    parser.add_argument('--seed', type=int, default=0, help='seed of the augmentation')
    return parser.parse_args(argv)


def main(argv=None):
    """Draw."""
    args = parse_args(argv)
    loader, out = f'{args.split}_dataloader', Path(args.out)
    with one_line_errors(args.debug):
        cfg = prepare_config(args, (loader, 'visualizer', 'default_scope'), (loader,))
        check_folder(args.out)
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)
        print(f'{draw(cfg, args.split, args.number, out)} pictures in {out}')


if __name__ == '__main__':
    main()
