"""Pictures of what a trained model says about images of one's own. Both tasks.

    python tools/visualization/image_demo.py IMAGE_OR_FOLDER CONFIG CHECKPOINT --out-dir work_dirs/demo

A segmentor's classes are drawn over the image, a classifier's is written on it. The images need no labels.
"""

import argparse
import os.path as osp
from collections import Counter
from pathlib import Path

import mmcv
import mmengine
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmvisiongru.checkpoint import check_weights, read_weights
from mmvisiongru.engine.samples import PICTURES
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder
from mmvisiongru.launch.classes import dataset_meta
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import building, prepare_config


def find_images(path: str) -> list[str]:
    """The image, or all in the folder, each of which can be read."""
    paths = [path]
    if osp.isdir(path):
        names = mmengine.scandir(path, PICTURES, case_sensitive=False)
        paths = [osp.join(path, name) for name in sorted(names)]
    if not paths:
        raise InputError(f'no image ({", ".join(PICTURES)}) in {path}')
    for path in paths:
        if not osp.isfile(path):
            raise InputError(f'image {path} does not exist')
        if not readable(path):
            raise InputError(f'{path} is not an image that can be read')
    return paths


def readable(path: str) -> bool:
    """Whether mmcv reads the image; it returns nothing or raises, depending on what is wrong."""
    try:
        return mmcv.imread(path) is not None
    except Exception:
        return False


def check_out_dir(out_dir: str, images: list[str]) -> None:
    """Make the folder for the pictures, which are named as the images are, where they overwrite nothing."""
    if any(osp.realpath(osp.dirname(path)) == osp.realpath(out_dir) for path in images):
        raise InputError(f'--out-dir {out_dir} holds the images themselves; pictures would overwrite them')
    (name, times), *_ = Counter(Path(path).stem for path in images).most_common(1)
    if times > 1:
        raise InputError(f'two images are named {name}; their pictures would overwrite each other')
    check_folder(out_dir)


def segment(cfg: Config, weights: dict, images: list[str], args) -> list[str]:
    """Draw classes over the images. Returns a line for each."""
    from mmseg.apis import MMSegInferencer

    with building(cfg):
        model = MMSegInferencer(cfg, args.checkpoint, device=args.device, show_progress=False)
    check_weights(model.model, weights, args.checkpoint)
    # Not every checkpoint names its classes, and mmseg takes those of Cityscapes then.
    model.model.dataset_meta = dataset_meta(cfg) or model.model.dataset_meta
    classes, lines = model.model.dataset_meta['classes'], []
    if len(classes) != (outputs := model.model.num_classes):
        raise InputError(f'{args.config} names {len(classes)} classes for {outputs} outputs of the model')
    # One at a time: what the inferencer returns holds a map a class.
    for path in mmengine.track_iter_progress(images):
        sample = model(
            path, out_dir=args.out_dir, img_out_dir='', opacity=args.opacity, return_datasamples=True
        )
        labels = sample.pred_sem_seg.data.flatten()
        shares = labels.bincount(minlength=outputs) / labels.numel()
        best = shares.argsort(descending=True)[:3]
        lines.append(', '.join(f'{classes[i]} {shares[i]:.1%}' for i in best))
    return lines


def classify(cfg: Config, weights: dict, images: list[str], args) -> list[str]:
    """Write the class on the images. Returns a line for each."""
    from mmpretrain import ImageClassificationInferencer

    with building(cfg):
        model = ImageClassificationInferencer(cfg, args.checkpoint, device=args.device)
    check_weights(model.model, weights, args.checkpoint)
    results = model(images, show_dir=args.out_dir)
    return [f'{r.get("pred_class", r["pred_label"])} {r["pred_score"]:.1%}' for r in results]


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('img', help='image file or folder')
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='work_dirs/demo', help='folder for the pictures')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU where there is one)')
    parser.add_argument('--opacity', type=float, default=0.5, help='of the classes over the image')
    return parser.parse_args(argv)


def main(argv=None):
    """Predict and draw."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        cfg = prepare_config(args, ('model', 'test_dataloader', 'default_scope'))
        images = find_images(args.img)
        check_out_dir(args.out_dir, images)
        weights = read_weights(args.checkpoint)
        init_default_scope(cfg.default_scope)
        run = classify if cfg.default_scope == 'mmpretrain' else segment
        lines = run(cfg, weights, images, args)
    # The progress bar of mmpretrain may leave its line open.
    print()
    for path, line in zip(images, lines, strict=True):
        print(f'{path}: {line}')
    print(f'{len(images)} pictures in {args.out_dir}')


if __name__ == '__main__':
    main()
