"""Pictures of what a trained model says about images of one's own. Both tasks.

    python tools/visualization/image_demo.py IMAGE_OR_FOLDER CONFIG CHECKPOINT --out-dir work_dirs/demo

A segmentor's classes are drawn over the image, a classifier's is written on it. The images need no labels.
"""

import argparse
import os.path as osp
from pathlib import Path

import mmcv
import mmengine
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from mmvisiongru.engine.checkpoint import check_weights, read_weights, refuse_pickled_code
from mmvisiongru.engine.cli import one_line_errors
from mmvisiongru.engine.config import load_config
from mmvisiongru.engine.samples import PICTURES
from mmvisiongru.errors import InputError
from mmvisiongru.storage import check_folder


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
        if mmcv.imread(path) is None:
            raise InputError(f'{path} is not an image that can be read')
    return paths


def check_out_dir(out_dir: str, images: list[str]) -> None:
    """Make the folder for the pictures, which are named as the images are, where they overwrite nothing."""
    if any(osp.realpath(osp.dirname(path)) == osp.realpath(out_dir) for path in images):
        raise InputError(f'--out-dir {out_dir} holds the images themselves; pictures would overwrite them')
    names = [Path(path).stem for path in images]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f'two images are named {twice[0]}; their pictures would overwrite each other')
    check_folder(out_dir)


def segment(cfg: Config, weights: dict, images: list[str], args) -> list[str]:
    """Draw classes over the images. Returns a line for each."""
    from mmseg.apis import MMSegInferencer

    model = MMSegInferencer(cfg, args.checkpoint, device=args.device)
    check_weights(model.model, weights, args.checkpoint)
    drawn = model(images, out_dir=args.out_dir, img_out_dir='', opacity=args.opacity, return_datasamples=True)
    classes = model.model.dataset_meta['classes']
    samples = drawn if isinstance(drawn, list) else [drawn]
    return [_shares(sample.pred_sem_seg.data, classes) for sample in samples]


def _shares(labels, classes) -> str:
    """The three classes with most pixels."""
    counts = labels.flatten().bincount(minlength=len(classes))
    return ', '.join(
        f'{classes[i]} {counts[i] / counts.sum():.1%}' for i in counts.argsort(descending=True)[:3]
    )


def classify(cfg: Config, weights: dict, images: list[str], args) -> list[str]:
    """Write the class on the images. Returns a line for each."""
    from mmpretrain import ImageClassificationInferencer

    model = ImageClassificationInferencer(cfg, args.checkpoint, device=args.device)
    check_weights(model.model, weights, args.checkpoint)
    results = model(images, show_dir=args.out_dir)
    return [f'{r.get("pred_class", r["pred_label"])} {r["pred_score"]:.1%}' for r in results]


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('img', help='image file or folder')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='work_dirs/demo', help='folder for the pictures')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU where there is one)')
    parser.add_argument('--opacity', type=float, default=0.5, help='of the classes over the image')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='settings over it, KEY=VALUE')
    return parser.parse_args(argv)


def main(argv=None):
    """Predict and draw."""
    args = parse_args(argv)
    with one_line_errors():
        refuse_pickled_code()
        cfg = load_config(args.config, args.cfg_options, ('model', 'test_dataloader'))
        weights = read_weights(args.checkpoint)
        images = find_images(args.img)
        init_default_scope(cfg.default_scope)
        check_out_dir(args.out_dir, images)
        run = classify if cfg.default_scope == 'mmpretrain' else segment
        lines = run(cfg, weights, images, args)
    # The progress bar of mmpretrain may leave its line open.
    print()
    for path, line in zip(images, lines, strict=True):
        print(f'{path}: {line}')
    print(f'{len(images)} pictures in {args.out_dir}')


if __name__ == '__main__':
    main()
