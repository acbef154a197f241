"""What a config says about data, held against the folders that it names."""

import os
import os.path as osp
from collections.abc import Iterable, Iterator

from mmengine.config import Config

from mmvisiongru.errors import InputError

# Data sets of mmpretrain that fetch their own data.
DOWNLOADED = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST')


def datasets(cfg: Config, dataloaders: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """The data sets of dataloaders with their place, those inside RepeatDataset and the like too."""
    for name in dataloaders:
        if cfg.get(name):
            yield from _parts(cfg[name].dataset, f'{name}.dataset')


def _parts(dataset: dict, key: str) -> Iterator[tuple[str, dict]]:
    if 'dataset' in dataset:
        yield from _parts(dataset.dataset, f'{key}.dataset')
    elif 'datasets' in dataset:
        for i, part in enumerate(dataset.datasets):
            yield from _parts(part, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def folders_of(dataset: dict, key: str) -> dict[str, str]:
    """The folders of a data set by the setting that names each; none if they are not on this machine."""
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or ''
    kind = str(dataset.get('type')).split('.')[-1]
    if kind in DOWNLOADED or dataset.get('backend_args') or '://' in root:
        return {}
    if kind == 'ImageNet' and not prefix:
        prefix = dataset.get('split', '')
    prefixes = prefix if isinstance(prefix, dict) else {'': prefix}
    folders = {f'{key}.data_root': root}
    for part, folder in prefixes.items():
        if isinstance(folder, str) and folder:
            folders[f'{key}.data_prefix' + (f'.{part}' if part else '')] = osp.join(root, folder)
    return {place: osp.abspath(osp.expanduser(folder)) for place, folder in folders.items() if folder}


def check_data(cfg: Config, dataloaders: Iterable[str]) -> None:
    """Check that the folders of the data sets exist and hold something.

    Raises:
        InputError: A folder is missing or empty. The message ends with the config's ``data_hint``, a text
            that says how to get the data.
    """
    for key, dataset in datasets(cfg, dataloaders):
        for place, folder in folders_of(dataset, key).items():
            if not osp.isdir(folder) or not os.listdir(folder):
                state = 'is empty' if osp.isdir(folder) else 'does not exist'
                hint = cfg.get('data_hint') or f'put the data there or set {key}.data_root'
                raise InputError(f'data folder {folder} ({place}) {state}; {hint}')
