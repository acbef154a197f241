"""Images of the user's own, prepared as a test of the config prepares them."""

import os.path as osp
from collections.abc import Callable
from math import ceil

import cv2
import mmcv
import mmengine
import torch
from mmcv.transforms import Compose, LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmvisiongru.errors import InputError, in_one_line
from mmvisiongru.sample_checks import IMAGE_SUFFIXES

# For a backbone alone, which says nothing about its input.
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def find_images(path: str) -> list[str]:
    """The image, or all images in the folder and in those inside it.

    Raises:
        InputError: There is none, or a file is not an image.
    """
    paths = [path]
    if osp.isdir(path):
        names = mmengine.scandir(path, IMAGE_SUFFIXES, recursive=True, case_sensitive=False)
        paths = [osp.join(path, name) for name in sorted(names)]
    if not paths:
        raise InputError(f'no image ({", ".join(IMAGE_SUFFIXES)}) in {path}')
    for path in paths:
        if not osp.isfile(path):
            raise InputError(f'image {path} does not exist')
        if not cv2.haveImageReader(path):
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
    dataset = (cfg.get('test_dataloader') or {}).get('dataset', {})
    steps = _without_labels(dataset.get('pipeline', []))
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
        elif 'Annotation' not in str(step['type']):
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


def normalised(model: nn.Module, sample: dict) -> Tensor:
    """An image as the model's own preprocessor prepares it in a test, (1, C, H, W)."""
    preprocessor = getattr(model, 'data_preprocessor', None) or ImgDataPreprocessor(**IMAGENET)
    return preprocessor(pseudo_collate([sample]), False)['inputs']
