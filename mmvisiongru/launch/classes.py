"""The classes of data sets: as a config states them or as folders do, and what in a model must agree."""

import os
import os.path as osp
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS

from mmvisiongru.errors import InputError

from .data import datasets, folders_of
from .names import resolve

# Heads that learn something else than the classes of the data: edges.
OTHER_CLASSES = ('STDCHead',)


def dataset_meta(cfg: Config) -> dict | None:
    """Classes and palette of the test data set, None if only an instance could tell."""
    settings = cfg.test_dataloader.dataset
    meta = _metainfo(settings, cfg.get('default_scope'))
    return with_colours(meta['classes'], meta.get('palette')) if meta.get('classes') else None


def with_colours(classes: Sequence[str], palette: Sequence | None = None) -> dict:
    """Classes with their palette, or with the colours that mmseg gives classes that have none."""
    if len(palette or ()) != len(classes):
        palette = np.random.RandomState(42).randint(0, 255, (len(classes), 3)).tolist()
    return dict(classes=classes, palette=palette)


def check_classes(cfg: Config, dataloaders: Iterable[str]) -> None:
    """Compare the classes of the data sets with each other and with what the model says.

    Raises:
        InputError: Folders are more or fewer than the classes, the data sets have different ones, or
            ``num_classes`` of a head or of the data preprocessor is another number.
    """
    known = {}
    for key, dataset in datasets(cfg, dataloaders):
        if (classes := _classes(dataset, key, cfg.get('default_scope'))) is not None:
            known[key] = classes
    for (key, classes), (other, others) in zip(known.items(), list(known.items())[1:], strict=False):
        # Labels are places in this list.
        if list(classes) != list(others):
            raise InputError(
                f'{other} has not the classes of {key}: {len(others)} and {len(classes)}, different are '
                f'{", ".join(sorted(map(str, set(classes) ^ set(others)))[:3]) or "their places"}; both '
                'need the same classes in the same order'
            )
    for key, classes in list(known.items())[:1]:
        wrong = {k: n for k, n in _numbers_of_classes(cfg) if n != len(classes)}
        if wrong:
            found = ', '.join(f'{place}={number}' for place, number in wrong.items())
            mended = ' '.join(f'{place}={len(classes)}' for place in wrong)
            raise InputError(f'{found}, but {key} has {len(classes)} classes; set {mended}')


def _classes(dataset: dict, key: str, scope: str | None) -> Sequence[str] | None:
    """The classes of a data set, None if only an instance could tell."""
    stated = dataset.get('classes') or _metainfo(dataset, scope).get('classes')
    if isinstance(stated, str):
        stated = list_from_file(stated) if osp.isfile(stated) else None
    kind = resolve(dataset.get('type'), DATASETS, scope)
    folder = next(reversed(folders_of(dataset, key).values()), None)
    if folder is None or not osp.isdir(folder) or not _labels_by_folder(dataset, kind):
        return stated
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if names and names[0].startswith('.'):
        raise InputError(
            f'{folder} has a hidden folder {names[0]}, which would be class 0; delete it ({key})'
        )
    if stated and names and len(stated) != len(names):
        raise InputError(
            f'{key} ({kind.__name__}) has {len(stated)} classes, but {folder} has {len(names)} folders; put '
            f"the missing ones there, or for a set of your own set {key}.type='CustomDataset', which takes "
            f'the folders as classes, with data_prefix in place of split'
        )
    return stated or names or None


def _metainfo(dataset: dict, scope: str | None) -> dict:
    kind = resolve(dataset.get('type'), DATASETS, scope)
    return kind._load_metainfo(dataset.get('metainfo')) if hasattr(kind, '_load_metainfo') else {}


def _labels_by_folder(dataset: dict, kind) -> bool:
    """Whether this is a data set of mmpretrain whose labels are the sub-folders that images are in."""
    root, split = dataset.get('data_root') or '', dataset.get('split')
    # ImageNet takes such a list by itself, and its test split has no labels.
    listed = split == 'test' or osp.isfile(osp.join(root, 'meta', f'{split}.txt'))
    own_list = dataset.get('ann_file') or listed or not dataset.get('with_label', True)
    return hasattr(kind, '_find_samples') and not own_list


def _numbers_of_classes(cfg: Config) -> Iterator[tuple[str, int]]:
    """Each ``num_classes`` of a head or a data preprocessor, with its place."""

    def walk(node, place):
        if isinstance(node, dict):
            part = next(k for k in reversed(place.split('.')) if not k.isdigit())
            number, kind = node.get('num_classes'), str(node.get('type')).split('.')[-1]
            asked = part.endswith(('head', 'heads')) or part == 'data_preprocessor'
            if isinstance(number, int) and asked and kind not in OTHER_CLASSES:
                yield f'{place}.num_classes', number
        if isinstance(node, (dict, list, tuple)):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                yield from walk(child, f'{place}.{key}')

    for key in ('model', 'data_preprocessor'):
        yield from walk(cfg.get(key), key)
