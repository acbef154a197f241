"""Checks of samples: lists and files that are accepted when they should not be, labels that are no class."""

import os.path as osp
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from PIL import ExifTags, Image

from mmvisiongru.errors import InputError
from mmvisiongru.files import is_local

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


def check_list(path: str, place: str) -> None:
    """Refuse what the libraries would read as a name in a list of samples, the ``ann_file`` of ``place``."""
    if path.endswith('.txt') and osp.isfile(path):
        text = Path(path).read_text(encoding='utf-8', errors='replace')
        blank = [i for i, line in enumerate(text.splitlines(), 1) if not line.strip()]
        if blank or text.startswith('\ufeff'):
            fault = f'a blank line {blank[0]}' if blank else 'a byte order mark'
            raise InputError(f'{path} ({place}.ann_file) has {fault}; delete it')


def check_files(info: dict, upright: bool = True) -> None:
    """Check the ends of a sample's pictures, and the mode and size of its label map.

    Their paths are ``img_path`` and ``seg_map_path`` of ``info``. One that is no local file is not checked:
    the data set may find it elsewhere. ``upright``: the loader turns images as their EXIF orientation says.

    Raises:
        ValueError: A file is empty or cut short; a label map is in colour, has values above 255, or has not
            the size of the image.
    """
    paths = [info.get(key) for key in ('img_path', 'seg_map_path')]
    for path in paths:
        if isinstance(path, str) and osp.isfile(path):
            _check_end(path)
    image, label = (path if _is_picture(path) else None for path in paths)
    if label:
        _check_map(label, image, upright)


def _is_picture(path) -> bool:
    return isinstance(path, str) and path.lower().endswith(IMAGE_SUFFIXES) and osp.isfile(path)


def _check_end(path: str) -> None:
    with open(path, 'rb') as file:
        start = file.read(4)
        file.seek(max(0, osp.getsize(path) - 12))
        end = file.read()
    if not start:
        raise ValueError(f'{path} is empty')
    complete = True
    # More may follow a complete image.
    if start == b'\x89PNG':
        complete = b'IEND' in end or b'IEND\xaeB`\x82' in Path(path).read_bytes()
    elif start.startswith(b'\xff\xd8') and not end.endswith(b'\xff\xd9'):
        # Of the markers inside, some belong to a thumbnail or to what follows, such as a video.
        try:
            with Image.open(path) as image:
                image.load()
        except OSError:
            complete = False
    if not complete:
        raise ValueError(f'{path} is cut short')


def _check_map(path: str, image: str | None, upright: bool) -> None:
    with Image.open(path) as label:
        # PIL's modes of one channel, of more than 8 bits and of at most 8.
        if label.mode in ('I', 'I;16', 'I;16B', 'I;16L'):
            if (highest := label.getextrema()[1]) > 255:
                raise ValueError(f'label map {path} has the value {highest}; class indices end at 255')
        elif label.mode not in ('L', 'P', '1'):
            raise ValueError(f'label map {path} has mode {label.mode}; expected one channel of class indices')
        size = label.size
    if image is None:
        return
    with Image.open(image) as picture:
        turned = upright and picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
        read = picture.size[::-1] if turned else picture.size
        # Only of a JPEG is it certain that the loader turns it.
        if size != read and (picture.format == 'JPEG' or size != picture.size):
            note = ', turned by its EXIF orientation' if turned else ''
            raise ValueError(f'{path} has {size} pixels, its image {read} (width, height){note}')


def reads_elsewhere(node) -> bool:
    """Whether a data set, or any part or transform of it, has a file backend other than the local one."""
    if isinstance(node, (list, tuple)):
        return any(map(reads_elsewhere, node))
    args = getattr(node, 'backend_args', None) or getattr(node, 'file_client_args', None)
    return not is_local('', args) or any(
        reads_elsewhere(vars(node)[part])
        for part in ('dataset', 'datasets', 'pipeline', 'transforms')
        if part in getattr(node, '__dict__', ())
    )


def check_labels(sample, dataset, classes: int, info: dict, evaluation: bool = False) -> None:
    """Compare the labels of a packed sample with the classes of its data set.

    Raises:
        ValueError: A label is not a class, or, in training, every pixel of the map is ignored.
    """
    packed = sample.get('data_samples') if isinstance(sample, dict) else None
    if not classes or not isinstance(packed, BaseDataElement):
        return
    if 'gt_label' in packed and packed.gt_label.ndim == 1:
        _check_range(packed.gt_label, classes, None, info.get('img_path'))
    if 'gt_sem_seg' in packed:
        labels, ignore = packed.gt_sem_seg.data, getattr(dataset, 'ignore_index', 255)
        path, shift = info.get('seg_map_path'), int(bool(info.get('reduce_zero_label')))
        _check_range(labels, classes, ignore, path, shift)
        # A crop may be ignored, but not the complete map.
        ignored = not evaluation and _is_picture(path) and bool((labels == ignore).all())
        if ignored and np.isin(Image.open(path), [ignore, 0 if shift else ignore]).all():
            raise ValueError(f'every pixel of {path} is ignored')


def _check_range(labels: torch.Tensor, classes: int, ignore: int | None, path: str, shift: int = 0) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if ignore is not None:
        wrong &= labels != ignore
    if wrong.any():
        label = int(labels[wrong][0])
        stored = f' ({label + shift} in the file)' if shift else ''
        raise ValueError(f'{path} contains label {label}{stored}, but labels must be 0 to {classes - 1}')
