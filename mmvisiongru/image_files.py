"""Checks of image and label files that decoders accept when they should not."""

import os
import os.path as osp

from PIL import Image

PICTURES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
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
    if label and label.lower().endswith(PICTURES):
        size = _check_map(label)
        if image and image.lower().endswith(PICTURES):
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


def values_of_map(path: str) -> set[int]:
    """The class indices in a label map; none if the file is not local or no picture."""
    if not isinstance(path, str) or not osp.isfile(path) or not path.lower().endswith(PICTURES):
        return set()
    with Image.open(path) as label:
        return {value for _, value in label.getcolors(65536) or []}
