"""Draw what a trained model predicts for your own images. All tasks.

    python tools/visualization/image_demo.py IMAGE_OR_FOLDER CONFIG CHECKPOINT --out-dir work_dirs/demo
    python tools/visualization/image_demo.py FOLDER CONFIG CHECKPOINT --pred-out predictions.csv

A segmentor's classes or a detector's boxes and masks are drawn over the image, a classifier's is above it, as
PNG. The images need no labels. Folders inside the folder are taken too, and the pictures keep their places.
Images are prepared as in a test of the config; each line says at what size the model saw the image.
"""

import argparse
import csv
import io
import json
import os.path as osp
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import mmcv
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn
from torch.nn.functional import interpolate

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.apis import get_model
from mmvisiongru.checkpoint.match import plain_model
from mmvisiongru.errors import InputError
from mmvisiongru.files import write_text
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import prepare_config
from mmvisiongru.measure import progress_bar
from mmvisiongru.zoo import dataset_meta
from tools.deployment.painting import paint
from tools.outputs import check_output, counted, data_folders, output_paths, write_picture
from tools.visualization.drawing import SCORE, draw_sample
from tools.visualization.images import find_images, image_reader

# Classes that a line names, by the scope of the config.
SHOWN = dict(mmseg=3, mmpretrain=5, mmdet=5)
# Logits that are resized at a time.
MOST_LOGITS = 1 << 25


def distinct(classes: Sequence[str]) -> list[str]:
    """Names of classes; those that several classes share with their numbers: ImageNet has two cranes."""
    times = Counter(classes)
    return [name if times[name] == 1 else f'{name} ({i})' for i, name in enumerate(classes)]


def load_model(cfg: Config, args) -> nn.Module:
    """The model with its weights, under test-time augmentation if the config is for that."""
    device = args.device or get_device()
    optimize = device == 'cpu' and not args.no_optimize
    model = get_model(cfg, args.checkpoint, device, getattr(torch, args.dtype), optimize)
    if 'module' in cfg.model:
        return MODELS.build(dict(cfg.model, module=model))
    if hasattr(model, 'postprocess_result'):
        label_without_logits(model)
    return model


def label_without_logits(segmentor: nn.Module) -> None:
    """Let a segmentor hold no logits of the image's size: of 150 classes at 4000 x 3000 they take 7 GB."""
    original = segmentor.postprocess_result

    def postprocess_result(seg_logits: Tensor, data_samples: list) -> list:
        if seg_logits.size(1) == 1:
            return original(seg_logits, data_samples)
        for logits, sample in zip(seg_logits, data_samples, strict=True):
            left, right, top, bottom = sample.get('img_padding_size', sample.get('padding_size', [0] * 4))
            logits = logits[:, top : logits.size(1) - bottom, left : logits.size(2) - right]
            labels = resized_argmax(logits, sample.ori_shape[:2], segmentor.align_corners)
            sample.pred_sem_seg = PixelData(data=labels)
        return data_samples

    segmentor.postprocess_result = postprocess_result


def resized_argmax(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """``resize(logits, size).argmax(0)`` of logits (C, h, w), a few classes at a time. Gives (1, H, W)."""
    step = max(1, MOST_LOGITS // (size[0] * size[1]))
    best = torch.full(size, -torch.inf, dtype=logits.dtype, device=logits.device)
    labels = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for first in range(0, len(logits), step):
        part = logits[None, first : first + step]
        value, label = interpolate(part, size, mode='bilinear', align_corners=align_corners)[0].max(0)
        better = value > best
        best, labels = torch.where(better, value, best), torch.where(better, first + label, labels)
    return labels[None]


def scores_of(sample: BaseDataElement, classes: Sequence[str] | None, config: str) -> dict[str, float]:
    """The score of each class, of a segmentor its share of the image, of a detector that of its best box."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        best = torch.zeros(len(classes)).scatter_reduce(0, found.labels.cpu(), found.scores.cpu(), 'amax')
        scores = zip(distinct(classes), best.tolist(), strict=True)
        return {name: score for name, score in scores if score >= SCORE}
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data.flatten().long()
        scores = labels.bincount(minlength=len(classes or ())) / labels.numel()
    else:
        scores = sample.pred_score
    classes = classes or list(map(str, range(len(scores))))
    if len(classes) != len(scores):
        raise InputError(f'{config} names {len(classes)} classes for {len(scores)} outputs of the model')
    return dict(zip(distinct(classes), scores.tolist(), strict=True))


def predictor(cfg: Config, args) -> Callable[[str, dict, str], dict]:
    """A function that draws what the model predicts for an image, and gives the scores and the size seen.

    It takes the path of the image, what :func:`image_reader` makes of it, and the picture to write.
    """
    model = load_model(cfg, args)
    # A checkpoint may name classes without their colours.
    meta = (dataset_meta(cfg) or {}) | (plain_model(model).dataset_meta or {})
    classes = meta.get('classes')

    def predict(path: str, prepared: dict, picture: str) -> dict:
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([prepared]))
        found = dict(size=sample.img_shape[:2], scores=scores_of(sample, classes, args.config))
        image = mmcv.imread(path, channel_order='rgb')
        if 'pred_instances' in sample:
            found['instances'] = instances_of(sample, classes)
        if 'pred_sem_seg' in sample:
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(int)
            write_picture(picture, paint(image, labels, classes, meta.get('palette'), args.opacity))
        else:
            write_picture(picture, draw_sample(image, sample, classes, meta.get('palette')))
        return found

    return predict


def instances_of(sample: BaseDataElement, classes: Sequence[str]) -> list[dict]:
    """All detections: class, score, box (x1, y1, x2, y2) in pixels; the mask in COCO's RLE, if any."""
    from mmdet.structures.mask import encode_mask_results

    found = sample.pred_instances.cpu()
    rows = [
        dict(zip(('class', 'score', 'box'), (classes[int(label)], float(score), box.tolist()), strict=True))
        for label, score, box in zip(found.labels, found.scores, found.bboxes, strict=True)
    ]
    for row, mask in zip(rows, encode_mask_results(found.masks) if 'masks' in found else (), strict=False):
        row['mask'] = dict(mask, counts=mask['counts'].decode())
    return rows


def line(found: dict, shown: int) -> str:
    """The classes with the highest scores, and the size at which the model saw the image."""
    best = sorted(found['scores'].items(), key=lambda item: -item[1])[:shown]
    height, width = found['size']
    return ', '.join(f'{name} {score:.1%}' for name, score in best) + f' (seen at {width} x {height})'


def write_predictions(rows: dict[str, dict], path: str) -> None:
    """One row per image: its path, the size at which it was seen, and the score or share of each class.

    Of a detector one row per box. As JSON, the same with masks.
    """
    if path.endswith('.json'):
        write_text(path, json.dumps(rows))
        return
    first = next(iter(rows.values()))
    if 'instances' in first:
        table = [['image', 'class', 'score', 'x1', 'y1', 'x2', 'y2']]
        for image, row in rows.items():
            table += [[image, i['class'], f'{i["score"]:.6f}', *i['box']] for i in row['instances']]
    else:
        table = [['image', 'height', 'width', *first['scores']]]
        for image, row in rows.items():
            table.append([image, *row['size'], *(f'{score:.6f}' for score in row['scores'].values())])
    text = io.StringIO(newline='')
    csv.writer(text).writerows(table)
    write_text(path, text.getvalue())


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('img', help='image file or folder')
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='work_dirs/demo', help='folder for the pictures')
    parser.add_argument(
        '--pred-out', help='write all scores, shares of the image or boxes to this .csv or .json'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16', 'float16'],
        default='float32',
        help='of the weights; bfloat16 is faster on CPUs that have instructions for it',
    )
    parser.add_argument(
        '--no-optimize', action='store_true', help='on a CPU: keep the layers that training uses, to compare'
    )
    parser.add_argument('--opacity', type=float, default=0.5, help='opacity of the classes over the image')
    return parser.parse_args(argv)


def main(argv=None):
    """Predict and draw."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        if args.pred_out and not args.pred_out.endswith(('.csv', '.json')):
            raise InputError(f'--pred-out must end in .csv or .json, got {args.pred_out}')
        cfg = prepare_config(args, ('model', 'test_dataloader', 'default_scope'))
        if args.dtype != 'float32' and cfg.default_scope == 'mmdet':
            raise InputError('--dtype is not for detectors: 16 bits move their boxes by several pixels')
        images = find_images(args.img)
        root = args.img if osp.isdir(args.img) else None
        data = {*data_folders(cfg), *([root] if root else [])}
        check_output(args.out_dir, data)
        if args.pred_out:
            check_output(osp.dirname(args.pred_out) or '.', data)
        pictures = output_paths(images, args.out_dir, root)
        init_default_scope(cfg.default_scope)
        predict, read, found, bad = predictor(cfg, args), image_reader(cfg), {}, []
        # One at a time: a large image takes memory enough.
        with progress_bar() as bar:
            for path in bar.track(images, description='images'):
                try:
                    prepared = read(path)
                except InputError as error:
                    bad.append(str(error))
                    continue
                found[path] = predict(path, prepared, pictures[path])
        if args.pred_out and found:
            write_predictions(found, args.pred_out)
        for path, row in found.items():
            print(f'{path}: {line(row, SHOWN.get(cfg.default_scope, 3))}')
        table = f', {args.pred_out}' if args.pred_out and found else ''
        print(f'{counted(len(found), "picture")} in {args.out_dir}{table}')
        if bad:
            raise InputError(f'{len(bad)} of {len(images)} images left out: {"; ".join(bad[:3])}')


if __name__ == '__main__':
    main()
