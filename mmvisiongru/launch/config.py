"""Configs as the scripts read them: checked before anything is built."""

import inspect
import os
import os.path as osp
import traceback
from collections.abc import Iterable, Iterator

from mmengine.config import Config
from mmengine.runner import Runner

from mmvisiongru.errors import InputError, did_you_mean, in_one_line

# Keys that mmengine or our scripts read, besides the arguments of Runner.
OTHER_KEYS = {
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'data_hint',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'load_coverage',
    'max_bad_samples',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}
# Customary names of variables in a config file that come close to a key.
VARIABLES = {'gallery_dataloader', 'pipeline', 'test_pipeline', 'train_pipeline', 'val_pipeline'}

# Data sets of mmpretrain that fetch their own data.
DOWNLOADED = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST')


def known_keys() -> set[str]:
    """Top-level keys of a config that have an effect."""
    return set(inspect.signature(Runner).parameters) - {'cfg'} | OTHER_KEYS


def load_config(path: str, options: dict | None = None, required: Iterable[str] = ()) -> Config:
    """Read a config file and merge settings of the command line into it.

    Args:
        path (str): The config file.
        options (dict, optional): Settings as ``--cfg-options`` gives them, under dotted names.
        required (Iterable[str]): Top-level keys that must have a value.

    Raises:
        InputError: The file is missing or fails, a key is misspelt or missing, or a setting does not fit.
    """
    if not osp.isfile(path):
        raise InputError(f'config file {path} does not exist{_near_files(path)}')
    try:
        cfg = Config.fromfile(path)
    # A config is a program, and fails in any way that a program can.
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(path)]
        where = f'{path}:{lines[-1]}' if lines else path
        raise InputError(f'config file {where}: {in_one_line(error)}') from error
    check_keys(cfg, options or {})
    try:
        cfg.merge_from_dict(options or {})
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise InputError(f'--cfg-options does not fit {path}: {in_one_line(error)}') from error
    if missing := [key for key in required if cfg.get(key) is None]:
        raise InputError(f'config file {path} has no {", ".join(missing)}; is it a part for `_base_`?')
    return cfg


def check_keys(cfg: Config, options: Iterable[str] = ()) -> None:
    """Refuse top-level keys that look like a misspelt one.

    A config file may hold variables of any name, so only a name close to a key is an error there. A name
    from the command line must be in the config file or be a key.
    """
    known = known_keys()

    def hint(key, names=known):
        return did_you_mean(key, names, cutoff=0.8)

    for key in cfg:
        if key not in known | VARIABLES and hint(key):
            raise InputError(f'unknown key {key!r} in config {cfg.filename}{hint(key)}')
    for option in options:
        key = option.split('.')[0]
        if key not in known and key not in cfg:
            raise InputError(f'unknown key {key!r} in --cfg-options {option}{hint(key, known | set(cfg))}')
        # A variable was used when the file was read; to set it now would change nothing.
        if key not in known and (places := list(_places(cfg, cfg[key]))):
            raise InputError(
                f'--cfg-options {option} would only change a variable of the config file; '
                f'set {", ".join(places)} instead'
            )


def _places(cfg: Config, value) -> Iterator[str]:
    """Dotted names of the settings that have this text or collection as their value."""

    def walk(node, place):
        if node == value:
            yield place
        elif isinstance(node, (dict, list, tuple)):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                yield from walk(child, f'{place}.{key}')

    if isinstance(value, (str, dict, list, tuple)):
        for key in filter(known_keys().__contains__, cfg):
            yield from walk(cfg[key], key)


def check_data(cfg: Config, dataloaders: Iterable[str]) -> None:
    """Check that the folders of the data sets exist and hold something.

    Raises:
        InputError: A folder is missing or empty. The message ends with the config's ``data_hint``, a text
            that says how to get the data.
    """
    for name in dataloaders:
        if cfg.get(name):
            for key, dataset in _datasets(cfg[name].dataset, f'{name}.dataset'):
                _check_folders(dataset, key, cfg.get('data_hint'))


def _datasets(dataset, key: str) -> Iterator[tuple[str, dict]]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset, with their place."""
    if 'dataset' in dataset:
        yield from _datasets(dataset.dataset, f'{key}.dataset')
    elif 'datasets' in dataset:
        for i, part in enumerate(dataset.datasets):
            yield from _datasets(part, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def _check_folders(dataset: dict, key: str, hint: str | None) -> None:
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or ''
    kind = str(dataset.get('type')).split('.')[-1]
    if kind in DOWNLOADED or dataset.get('backend_args') or '://' in root:
        return
    if kind == 'ImageNet' and not prefix:
        prefix = dataset.get('split', '')
    prefixes = prefix if isinstance(prefix, dict) else {'': prefix}
    folders = {f'{key}.data_root': root}
    for part, folder in prefixes.items():
        if isinstance(folder, str) and folder:
            folders[f'{key}.data_prefix' + (f'.{part}' if part else '')] = osp.join(root, folder)
    for place, folder in folders.items():
        if not folder:
            continue
        folder = osp.abspath(osp.expanduser(folder))
        if not osp.isdir(folder) or not os.listdir(folder):
            state = 'is empty' if osp.isdir(folder) else 'does not exist'
            hint = hint or f'put the data there or set {key}.data_root'
            raise InputError(f'data folder {folder} ({place}) {state}; {hint}')


def _near_files(path: str) -> str:
    folder = osp.dirname(path) or '.'
    if not osp.isdir(folder):
        return f': there is no folder {folder}'
    return did_you_mean(
        osp.basename(path), os.listdir(folder), show=lambda near: osp.join(osp.dirname(path), near)
    )
