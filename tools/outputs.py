"""Where tools write: never among the data, never over the files of others, never outside the folder given."""

import os
import os.path as osp
from collections.abc import Iterable

import numpy as np
from mmengine.config import Config
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmvisiongru.config import DATALOADERS, datasets
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder, new_file

# Marks pictures in their metadata as ours: the next call of a tool may replace them.
SOFTWARE = 'mmvisiongru'


def data_folders(cfg: Config) -> set[str]:
    """Folders that the data sets of a config search for samples. A list of samples needs no search."""
    folders = set()
    for node in (node for _, node in datasets(cfg, DATALOADERS) if not node.get('ann_file')):
        root, prefix = node.get('data_root') or '', node.get('data_prefix') or node.get('split') or ''
        parts = prefix.values() if isinstance(prefix, dict) else [prefix]
        folders.update(osp.join(root, part or '') for part in parts)
    return folders - {''}


def check_output(folder: str, data: Iterable[str] = ()) -> None:
    """Make a folder to write to; InputError if it cannot be written or is in one of ``data``, of samples."""
    for samples in map(osp.realpath, data):
        if osp.commonpath([osp.realpath(folder), samples]) == samples:
            raise InputError(f'output folder {folder} is among the data in {samples}; choose another')
    check_folder(folder)


def check_figure(out: str, data: Iterable[str] = ()) -> None:
    """Make the folder of a figure OUT; InputError as for a folder, or if one of its files is another's."""
    check_output(osp.dirname(out) or '.', data)
    # Only a picture can be marked: OUT.pdf and OUT.csv are ours where OUT.png is.
    for suffix in ('png', 'pdf', 'csv'):
        _check_ours(f'{out}.{suffix}', f'{out}.png')


def stem(out: str) -> str:
    """OUT of a tool that writes OUT.png, OUT.csv and others, where OUT may end in one of these suffixes."""
    base, suffix = osp.splitext(out)
    return base if suffix.lower() in ('.png', '.pdf', '.csv', '.json', '.md') else out


def output_paths(images: Iterable[str], folder: str, root: str | None = None) -> dict[str, str]:
    """A PNG file for each image, as deep below ``folder`` as the image is below ``root``.

    ``root`` is a folder above all images, by default the deepest one. The names end in .png instead of the
    image's suffix; if that made two equal, all keep their suffix too. InputError if a file has one of these
    names already and was not written by a tool of this package.
    """
    images = sorted(set(images))
    root = root or osp.commonpath([osp.dirname(osp.abspath(path)) for path in images] or ['/'])
    names = [osp.join(folder, osp.relpath(osp.abspath(path), osp.abspath(root))) for path in images]
    stems = [osp.splitext(name)[0] for name in names]
    names = names if len(set(stems)) < len(stems) else stems
    paths = {image: f'{name}.png' for image, name in zip(images, names, strict=True)}
    for path in paths.values():
        _check_ours(path, path)
    return paths


def counted(number: int, noun: str) -> str:
    """'1 picture', '2 pictures'."""
    return f'{number} {noun}{"s" * (number != 1)}'


def _check_ours(path: str, picture: str) -> None:
    if osp.exists(path):
        start = b''
        if osp.isfile(picture):
            with open(picture, 'rb') as file:
                start = file.read(200)
        if f'Software\0{SOFTWARE}'.encode() not in start:
            raise InputError(f'{path} exists and was not written by this tool; choose another name or folder')


def write_picture(path: str, picture: np.ndarray) -> None:
    """Write an array as PNG in one step, so that several processes may write the same picture."""
    mark = PngInfo()
    mark.add_text('Software', SOFTWARE)
    with new_file(path, durable=False) as unfinished:
        os.makedirs(osp.dirname(path) or '.', exist_ok=True)
        Image.fromarray(picture).save(unfinished, 'PNG', pnginfo=mark, compress_level=1)
