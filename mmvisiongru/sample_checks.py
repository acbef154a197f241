"""Checks of a sample: files that decoders accept when they should not, and labels that are no class."""

import os
import os.path as osp

import torch
from mmengine.structures import BaseDataElement
from PIL import Image

from mmvisiongru.files import is_local

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
# PIL's modes of one channel, of at most 8 bits and of more.
MAP_MODES, WIDE_MODES = ('L', 'P', '1'), ('I', 'I;16', 'I;16B', 'I;16L')
EXIF_ORIENTATION = 0x0112


def check_files(info: dict, upright: bool = True) -> None:
    """Check the ends of a sample's files, and the mode and size of its label map.

    A path that is no local file is not checked: the data set may find it elsewhere.

    Args:
        info (dict): Of the sample, with ``img_path`` and ``seg_map_path``, if it has them.
        upright (bool): The loader turns images as their EXIF orientation says.

    Raises:
        ValueError: A file is empty or cut short; a label map is in colour, has values above 255, or has not
            the size of the image.
    """
    paths = [info.get(key) for key in ('img_path', 'seg_map_path')]
    image, label = (path if isinstance(path, str) and osp.isfile(path) else None for path in paths)
    for path in filter(None, (image, label)):
        _check_end(path)
    if label and label.lower().endswith(IMAGE_SUFFIXES):
        size = _check_map(label)
        if image and image.lower().endswith(IMAGE_SUFFIXES):
            _compare_size(label, size, image, upright)


def _check_end(path: str) -> None:
    with open(path, 'rb') as file:
        head = file.read(4)
        if not head:
            raise ValueError(f'{path} is empty')
        is_jpeg, is_png = head.startswith(b'\xff\xd8'), head == b'\x89PNG'
        if not (is_jpeg or is_png):
            return
        file.seek(-min(12, os.fstat(file.fileno()).st_size), os.SEEK_END)
        tail = file.read()
        if tail.endswith(b'\xff\xd9') if is_jpeg else b'IEND' in tail:
            return
        # More may follow a complete image. An end marker before the last scan is that of a thumbnail.
        file.seek(0)
        data = file.read()
    complete = data.rfind(b'\xff\xd9') > data.rfind(b'\xff\xda') if is_jpeg else b'IEND\xaeB`\x82' in data
    if not complete:
        raise ValueError(f'{path} is cut short')


def _check_map(path: str) -> tuple[int, int]:
    with Image.open(path) as label:
        if label.mode in WIDE_MODES:
            if (highest := label.getextrema()[1]) > 255:
                raise ValueError(f'label map {path} has the value {highest}; class indices end at 255')
        elif label.mode not in MAP_MODES:
            raise ValueError(f'label map {path} has mode {label.mode}; expected one channel of class indices')
        return label.size


def _compare_size(path: str, size: tuple[int, int], image: str, upright: bool) -> None:
    with Image.open(image) as picture:
        turned = upright and picture.getexif().get(EXIF_ORIENTATION, 1) > 4
        read = picture.size[::-1] if turned else picture.size
        # Only of JPEG is it known that the loader turns it.
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
        if not evaluation and bool((labels == ignore).all()):
            # A crop may be ignored, but not the complete map.
            values = _values_of_map(path)
            if values and values <= {ignore, 0 if shift else ignore}:
                raise ValueError(f'every pixel of {path} is ignored')


def _check_range(labels: torch.Tensor, classes: int, ignore: int | None, path: str, shift: int = 0) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if ignore is not None:
        wrong &= labels != ignore
    if wrong.any():
        label = int(labels[wrong][0])
        stored = f' ({label + shift} in the file)' if shift else ''
        raise ValueError(f'{path} contains label {label}{stored}, but labels must be 0 to {classes - 1}')


def _values_of_map(path: str) -> set[int]:
    """The class indices in a label map; none if the file is not local or no picture."""
    if not isinstance(path, str) or not osp.isfile(path) or not path.lower().endswith(IMAGE_SUFFIXES):
        return set()
    with Image.open(path) as label:
        return {value for _, value in label.getcolors(65536) or []}
