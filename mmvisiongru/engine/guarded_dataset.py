"""A data set that names what is wrong with a sample, and passes over a few bad ones in training."""

import os
import os.path as osp
import re

import torch
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from PIL import Image
from torch.utils.data import Dataset

from mmvisiongru.engine.resume import Draw, seed_all
from mmvisiongru.errors import InputError, in_one_line
from mmvisiongru.files import is_local

# What PIL calls one channel of at most 8 bits, and of more.
MAP_MODES, WIDE_MODES = ('L', 'P', '1'), ('I', 'I;16', 'I;16B', 'I;16L')
PICTURES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


class GuardedDataset(Dataset):
    """Loads the samples of a data set, each with random numbers of its own, and checks them.

    Labels are checked each time, as augmentation may spoil them, files when they are first read. To others it
    is the data set itself: they read its attributes, and set them, such as a new ``pipeline`` in mid-run.

    Args:
        dataset (dict): Config of the data set.
        seed (int): The seed of the run.
        max_bad_samples (int, optional): Samples that may be passed over, counted once each. A sample that
            cannot be used is replaced by the next that can. None: an evaluation, where none may.
    """

    OWN = frozenset(('dataset', 'run_seed', 'max_bad_samples', 'bad', 'good'))

    def __init__(self, dataset: dict, seed: int, max_bad_samples: int | None = None):
        self.dataset = DATASETS.build(dataset)
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        self.run_seed, self.max_bad_samples = seed, max_bad_samples
        # In memory that the workers share, one flag a sample: passed over; files looked at and good.
        self.bad, self.good = (
            torch.zeros(len(self.dataset), dtype=torch.uint8).share_memory_() for _ in range(2)
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name):
        # __getitems__: torch's fetcher would take a batch from it, past all checks.
        if name in ('dataset', '__getitems__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name, value):
        if name in self.OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __getitem__(self, index: int):
        if isinstance(index, Draw):
            seed_all(self.run_seed, 'sample', *index.position)
        index = int(index)
        for _ in range(1 + (self.max_bad_samples or 0)):
            try:
                return self.load(index)
            # A broken file fails in any way, in any transform.
            except Exception as error:
                fault = self.describe(index, error)
                if self.max_bad_samples is None:
                    raise InputError(fault) from error
                self.note(index, fault)
                index = (index + 1) % len(self)
        raise InputError(f'bad samples in a row, more than max_bad_samples={self.max_bad_samples}: {fault}')

    def load(self, index: int):
        """Load a sample.

        Raises:
            Exception: Whatever the pipeline raises; ValueError for what it would have let pass.
        """
        info = self.dataset.get_data_info(index) if hasattr(self.dataset, 'get_data_info') else {}
        if not self.good[index] and not reads_elsewhere(self.dataset):
            inner = getattr(self.dataset, 'dataset', self.dataset)
            steps = repr(getattr(inner, 'pipeline', ''))
            check_files(info, not re.search("ignore_orientation|'unchanged'|turbojpeg", steps))
        try:
            sample = self.dataset[index]
        except FileNotFoundError as error:
            if not error.filename:
                raise
            raise ValueError(f'{error.filename} does not exist') from error
        check_labels(sample, self.dataset, info, self.max_bad_samples is None)
        self.good[index] = 1
        return sample

    def describe(self, index: int, error: Exception) -> str:
        """One line that names the files of a sample and what is wrong with it."""
        return f'sample {index}, {files_of(self.dataset, index)}: {in_one_line(error)}'

    def note(self, index: int, fault: str) -> None:
        """Name a bad sample when it is met for the first time."""
        if not self.bad[index]:
            self.bad[index] = 1
            # At this level every rank shows it.
            MMLogger.get_current_instance().error(f'bad sample skipped: {fault}')

    def bad_files(self) -> list[str]:
        """The files of the samples that were passed over."""
        return [files_of(self.dataset, int(i)) for i in self.bad.nonzero()]


def files_of(dataset, index: int) -> str:
    """The files of a sample, as far as the data set tells."""
    info = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
    return ' with '.join(str(info[k]) for k in ('img_path', 'seg_map_path') if info.get(k)) or 'no file known'


def reads_elsewhere(node) -> bool:
    """Whether a data set, or any part or transform of it, has a file backend that is not the local one."""
    if isinstance(node, (list, tuple)):
        return any(map(reads_elsewhere, node))
    args = getattr(node, 'backend_args', None) or getattr(node, 'file_client_args', None)
    return not is_local('', args) or any(
        reads_elsewhere(vars(node)[part])
        for part in ('dataset', 'datasets', 'pipeline', 'transforms')
        if part in getattr(node, '__dict__', ())
    )


def check_files(info: dict, upright: bool = True) -> None:
    """Look at the heads and tails of a sample's files, which decoders accept when they should not.

    What is no local file may yet be found by the data set: it is not judged here. ``upright``: the loader
    turns images as their EXIF orientation says.

    Raises:
        ValueError: A file is empty or cut short; a map is in colour, holds more than 8 bits can, or is not of
            the image's size.
    """
    image, label = (_local(info.get(key)) for key in ('img_path', 'seg_map_path'))
    for path in filter(None, (image, label)):
        _check_end(path)
    if label and label.lower().endswith(PICTURES):
        _check_map(label, image, upright)


def _local(path) -> str | None:
    return path if isinstance(path, str) and osp.isfile(path) else None


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
        # Something may follow the end of a picture. A marker before the last scan is that of a thumbnail.
        file.seek(0)
        data = file.read()
    whole = data.rfind(b'\xff\xd9') > data.rfind(b'\xff\xda') if is_jpeg else b'IEND\xaeB`\x82' in data
    if not whole:
        raise ValueError(f'{path} is cut short')


def _check_map(path: str, image: str | None, upright: bool) -> None:
    with Image.open(path) as label:
        if label.mode in WIDE_MODES:
            highest = label.getextrema()[1]
            if highest > 255:
                raise ValueError(f'{path} holds the value {highest}, a map of labels goes to 255')
        elif label.mode not in MAP_MODES:
            raise ValueError(f'{path} is a picture of mode {label.mode}, no map of one label a pixel')
        size = label.size
    if image and image.lower().endswith(PICTURES):
        with Image.open(image) as picture:
            turned = upright and picture.getexif().get(0x0112, 1) > 4
            read = picture.size[::-1] if turned else picture.size
            # Not every decoder turns other formats.
            if size != read and (picture.format == 'JPEG' or size != picture.size):
                note = ', turned by its EXIF orientation' if turned else ''
                raise ValueError(f'{path} has {size} pixels, its image {read} (width, height){note}')


def check_labels(sample, dataset, info: dict, evaluation: bool = False) -> None:
    """Compare the labels of a packed sample with the classes of its data set.

    Raises:
        ValueError: A label is no class, or there is none but ignored pixels.
    """
    packed = sample.get('data_samples') if isinstance(sample, dict) else None
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if not classes or not isinstance(packed, BaseDataElement):
        return
    if 'gt_label' in packed and packed.gt_label.ndim == 1:
        _check_range(packed.gt_label, len(classes), None, info.get('img_path'), 0)
    if 'gt_sem_seg' in packed:
        labels, ignore = packed.gt_sem_seg.data, getattr(dataset, 'ignore_index', 255)
        path = info.get('seg_map_path')
        shift = int(bool(info.get('reduce_zero_label')))
        _check_range(labels, len(classes), ignore, path, shift)
        if not evaluation and bool((labels == ignore).all()) and _nothing_but_ignored(path, ignore, shift):
            raise ValueError(f'{path} holds no label, every pixel is ignored')


def _check_range(labels, classes: int, ignore: int | None, path, shift: int) -> None:
    # Most often one pass over the labels tells.
    low, high = labels.aminmax() if labels.numel() else (0, 0)
    if low >= 0 and high < classes:
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore is not None:
        wrong &= labels != ignore
    if wrong.any():
        value = int(labels[wrong][0])
        stored = f', {value + shift} in the file' if shift else ''
        raise ValueError(f'{path} holds the label {value}{stored}; there are {classes} classes, from 0')


def _nothing_but_ignored(path, ignore: int, shift: int) -> bool:
    """Whether a whole map is ignored, and not just the crop of it."""
    if not _local(path) or not path.lower().endswith(PICTURES):
        return False
    with Image.open(path) as label:
        values = {value for _, value in label.getcolors(65536) or []}
    return bool(values) and values <= {ignore, 0 if shift else ignore}
