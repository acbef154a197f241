"""Draw what a trained model predicts for your own images. Both tasks.

    python tools/visualization/image_demo.py IMAGE_OR_FOLDER CONFIG CHECKPOINT --out-dir work_dirs/demo
    python tools/visualization/image_demo.py FOLDER CONFIG CHECKPOINT --pred-out predictions.csv

A segmentor's classes are drawn over the image, a classifier's is written on it. The images need no labels.
Folders inside the folder are taken too, and the pictures keep their places. Each line says at what size the
model saw the image: the config's test pipeline decides that.
"""

import argparse
import csv
import io
import json
import os.path as osp
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmvisiongru.analysis.images import find_images, read_image
from mmvisiongru.analysis.labels import label_by_strips
from mmvisiongru.checkpoint import Checkpoint, check_weights, data_only, read_checkpoint
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder, write_text
from mmvisiongru.launch.classes import dataset_meta
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import building, prepare_config
from mmvisiongru.measure import progress_bar
from mmvisiongru.models.layers.precision import score_in_float32

# Classes that a line names, of a segmentor and of a classifier.
SHOWN = dict(segment=3, classify=5)


def place(path: str, root: str, out_dir: str) -> str:
    """Folder of the picture of an image, as deep below ``out_dir`` as the image is below ``root``."""
    inside = osp.relpath(osp.dirname(path), root) if osp.isdir(root) else '.'
    return osp.normpath(osp.join(out_dir, inside))


def check_places(images: list[str], root: str, out_dir: str) -> None:
    """Make the folder for the pictures, which are named as the images are, where they overwrite nothing."""
    places = [place(path, root, out_dir) for path in images]
    for path, folder in zip(images, places, strict=True):
        if osp.realpath(osp.dirname(path)) == osp.realpath(folder):
            raise InputError(
                f'--out-dir {out_dir} holds the images themselves; pictures would overwrite them'
            )
    names = Counter((folder, Path(path).stem) for path, folder in zip(images, places, strict=True))
    ((folder, name), times), *_ = names.most_common(1)
    if times > 1:
        raise InputError(
            f'two images are named {name}; their pictures in {folder} would overwrite each other'
        )
    check_folder(out_dir)


def distinct(classes: Sequence[str]) -> list[str]:
    """Names of classes, those that several share with their numbers: ImageNet has two cranes."""
    times = Counter(classes)
    return [name if times[name] == 1 else f'{name} ({i})' for i, name in enumerate(classes)]


def segmentor(cfg: Config, checkpoint: Checkpoint, args):
    """Give a function that draws classes over an image and says what share of it each has."""
    from mmseg.apis import MMSegInferencer

    with building(cfg), data_only(checkpoint):
        model = MMSegInferencer(cfg, args.checkpoint, device=args.device, show_progress=False)
    check_weights(model.model, checkpoint)
    model.model.to(getattr(torch, args.dtype))
    score_in_float32(model.model)
    label_by_strips(model.model)
    # Not every checkpoint names its classes, and mmseg takes those of Cityscapes then.
    model.model.dataset_meta = dataset_meta(cfg) or model.model.dataset_meta
    classes = model.model.dataset_meta['classes']
    if len(classes) != (outputs := model.model.num_classes):
        raise InputError(f'{args.config} names {len(classes)} classes for {outputs} outputs of the model')

    def segment(path: str, folder: str) -> dict:
        sample = model(path, out_dir=folder, img_out_dir='', opacity=args.opacity, return_datasamples=True)
        labels = sample.pred_sem_seg.data.flatten()
        shares = (labels.bincount(minlength=outputs) / labels.numel()).tolist()
        return dict(size=sample.img_shape[:2], scores=dict(zip(distinct(classes), shares, strict=True)))

    return segment


def classifier(cfg: Config, checkpoint: Checkpoint, args):
    """Give a function that writes the class on an image and gives the score of each."""
    from mmpretrain import ImageClassificationInferencer
    from mmpretrain.visualization import UniversalVisualizer

    with building(cfg), data_only(checkpoint):
        model = ImageClassificationInferencer(cfg, args.checkpoint, device=args.device)
    check_weights(model.model, checkpoint)
    model.model.to(getattr(torch, args.dtype))
    visualizer = UniversalVisualizer()

    def classify(path: str, folder: str) -> dict:
        # Not model(path), which would draw a progress bar for each image.
        (batch,) = model.preprocess([path], batch_size=1)
        (sample,) = model.forward(batch)
        check_folder(folder)
        visualizer.visualize_cls(
            read_image(path)[..., ::-1],
            sample,
            classes=model.classes,
            draw_gt=False,
            out_file=osp.join(folder, f'{Path(path).stem}.png'),
        )
        scores = sample.pred_score.tolist()
        names = distinct(model.classes or list(map(str, range(len(scores)))))
        return dict(size=sample.img_shape[:2], scores=dict(zip(names, scores, strict=True)))

    return classify


def line(found: dict, shown: int) -> str:
    """The classes with the highest scores, and the size at which the model saw the image."""
    best = sorted(found['scores'].items(), key=lambda item: -item[1])[:shown]
    height, width = found['size']
    return ', '.join(f'{name} {score:.1%}' for name, score in best) + f' (seen at {width} x {height})'


def write_predictions(rows: dict[str, dict], path: str) -> None:
    """One row per image: its path, the size at which it was seen, and the score or share of each class."""
    if path.endswith('.json'):
        write_text(path, json.dumps(rows, indent=1) + '\n')
        return
    text = io.StringIO(newline='')
    writer = csv.writer(text)
    classes = list(next(iter(rows.values()))['scores'])
    writer.writerow(['image', 'height', 'width', *classes])
    writer.writerows(
        [image, *row['size'], *(f'{score:.6f}' for score in row['scores'].values())]
        for image, row in rows.items()
    )
    write_text(path, text.getvalue())


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('img', help='image file or folder')
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='work_dirs/demo', help='folder for the pictures')
    parser.add_argument('--pred-out', help='write all scores, or shares of the image, to this .csv or .json')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16', 'float16'],
        default='float32',
        help='of the weights; bfloat16 is faster on CPUs that have instructions for it',
    )
    parser.add_argument('--opacity', type=float, default=0.5, help='opacity of the classes over the image')
    return parser.parse_args(argv)


def main(argv=None):
    """Predict and draw."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        if args.pred_out and not args.pred_out.endswith(('.csv', '.json')):
            raise InputError(f'--pred-out ends in .csv or .json, got {args.pred_out}')
        cfg = prepare_config(args, ('model', 'test_dataloader', 'default_scope'))
        images = find_images(args.img)
        check_places(images, args.img, args.out_dir)
        if args.pred_out:
            check_folder(osp.dirname(args.pred_out) or '.')
        checkpoint = read_checkpoint(args.checkpoint)
        init_default_scope(cfg.default_scope)
        is_classifier = cfg.default_scope == 'mmpretrain'
        predict = (classifier if is_classifier else segmentor)(cfg, checkpoint, args)
        # One at a time: a large image takes memory enough.
        with progress_bar() as bar:
            found = {
                path: predict(path, place(path, args.img, args.out_dir))
                for path in bar.track(images, description='images')
            }
        if args.pred_out:
            write_predictions(found, args.pred_out)
    for path, row in found.items():
        print(f'{path}: {line(row, SHOWN["classify" if is_classifier else "segment"])}')
    print(f'{len(images)} pictures in {args.out_dir}' + (f', {args.pred_out}' if args.pred_out else ''))


if __name__ == '__main__':
    main()
