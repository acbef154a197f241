"""What the visualization tools share: images prepared as in a test of the config."""

import os.path as osp
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from math import ceil

import cv2
import mmcv
import mmengine
import numpy as np
import torch
from mmcv.transforms import Compose, LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmvisiongru.apis import get_model
from mmvisiongru.config import pipeline_of, type_name
from mmvisiongru.errors import InputError, in_one_line
from mmvisiongru.launch.options import add_config_options
from mmvisiongru.sample_checks import IMAGE_SUFFIXES
from mmvisiongru.zoo import image_channels, model_config
from tools.analysis_tools.flops import image_size
from tools.visualization.drawing import as_rgb

# For a backbone alone, which says nothing about its input.
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def find_images(path: str) -> list[str]:
    """The image, or all images in the folder and in those inside it.

    Raises:
        InputError: There is none, or the file is not an image.
    """
    paths = [path]
    if osp.isdir(path):
        names = mmengine.scandir(path, IMAGE_SUFFIXES, recursive=True, case_sensitive=False)
        paths = [osp.join(path, name) for name in sorted(names)]
        if not paths:
            raise InputError(f'no image ({", ".join(IMAGE_SUFFIXES)}) in {path}')
    elif not osp.isfile(path):
        raise InputError(f'image {path} does not exist')
    elif not cv2.haveImageReader(path):
        raise InputError(f'{path} is not an image that can be read')
    return paths


def image_reader(cfg: Config, shape: tuple[int, int] | None = None) -> Callable[[str], dict]:
    """A function that reads an image as the test pipeline of a config does, but without labels.

    It gives what a data set does, ``inputs`` (C, H, W) and ``data_samples``, and raises InputError for an
    image that it cannot prepare. For a backbone alone images become 224 x 224.

    Args:
        cfg (Config): The config of a model.
        shape (tuple[int, int], optional): Height and width instead of those of the pipeline: the image is
            resized until it covers them, and its centre is taken.
    """
    steps = _without_labels(pipeline_of(cfg, 'test_dataloader'))
    if steps and shape:
        steps = [steps[0], _cover(shape), steps[-1]]
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        pipeline = Compose(steps or [LoadImageFromFile(), _cover(shape or (224, 224)), _pack])

    def read(path: str) -> dict:
        try:
            return pipeline(dict(img_path=path))
        # A broken file fails in any way, in any transform.
        except Exception as error:
            raise InputError(f'{path} cannot be prepared as in a test: {in_one_line(error)}') from error

    return read


def _without_labels(steps: list) -> list:
    """The transforms of a pipeline, and those inside them, without those that load labels."""
    kept = []
    for step in steps:
        if isinstance(step, list):
            kept += [inner] if (inner := _without_labels(step)) else []
        elif 'Annotation' not in type_name(step):
            inner = dict(transforms=_without_labels(step['transforms'])) if 'transforms' in step else {}
            kept.append(dict(step, **inner))
    return kept


def _cover(shape: tuple[int, int]) -> Callable[[dict], dict]:
    def transform(results: dict) -> dict:
        image = results['img']
        factor = max(new / old for new, old in zip(shape, image.shape, strict=False))
        height, width = (max(new, ceil(old * factor)) for new, old in zip(shape, image.shape, strict=False))
        image = mmcv.imresize(image, (width, height))
        top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
        return results | dict(img=image[top : top + shape[0], left : left + shape[1]], img_shape=shape)

    return transform


def _pack(results: dict) -> dict:
    return dict(inputs=torch.from_numpy(results['img'].copy()).permute(2, 0, 1))


def add_backbone_options(parser: ArgumentParser) -> None:
    """Add the options that :func:`backbone_and_images` reads."""
    add_config_options(parser)
    parser.add_argument('checkpoint', nargs='?', help='checkpoint (default: random weights)')
    parser.add_argument('--img', help='image or folder (default: noise)')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="resize and crop images to this size (default: what the config's test pipeline makes of them)",
    )


def backbone_and_images(args: Namespace, number: int) -> tuple[nn.Module, list[Tensor], list[np.ndarray]]:
    """The backbone of a model, and images as it gets them.

    Args:
        args (Namespace): With ``config``, ``checkpoint``, ``img`` (a path; None for noise) and ``shape``.
        number (int): Images at most, spread over the folder.

    Returns:
        tuple: The backbone; the images (1, C, H, W), all of one size; and the same before they were
        normalised, (H, W, 3), RGB.
    """
    cfg = model_config(args.config, args.cfg_options)
    model = get_model(cfg, args.checkpoint)
    backbone = getattr(model, 'backbone', model)
    if args.img is None:
        size = (1, image_channels(model), *(args.shape or image_size(cfg)))
        noise = torch.randn(number, *size, generator=torch.Generator().manual_seed(0))
        return backbone, list(noise), [as_rgb(64 * image[0] + 128) for image in noise]
    read, paths = image_reader(cfg, args.shape), find_images(args.img)
    number = min(number, len(paths))
    samples = [read(paths[i * len(paths) // number]) for i in range(number)]
    if isinstance(samples[0]['inputs'], list):
        raise InputError(f'{args.config} tests several views of an image; give the config without them')
    preprocess = getattr(model, 'data_preprocessor', None) or ImgDataPreprocessor(**IMAGENET)
    images = [preprocess(pseudo_collate([sample]), False)['inputs'] for sample in samples]
    if len(sizes := {image.shape[2:] for image in images}) > 1:
        sizes = ', '.join(f'{h} x {w}' for h, w in sorted(sizes)[:3])
        raise InputError(f'the images come out in several sizes ({sizes}); set --shape H W')
    return backbone, images, [as_rgb(sample['inputs']) for sample in samples]
