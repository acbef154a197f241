"""Config files by path or by name, and what can be said of one before anything is built."""

import inspect
import os.path as osp
import traceback
from collections.abc import Iterable, Iterator
from fnmatch import filter as match
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmvisiongru.errors import InputError, did_you_mean, in_one_line, some
from mmvisiongru.files import shipped

DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Top-level keys that have an effect: the arguments of Runner, and what mmengine or our scripts read besides.
KNOWN_KEYS = set(inspect.signature(Runner).parameters) - {'cfg'} | {
    'activation_checkpointing', 'channels_last', 'compile', 'custom_imports', 'data_hint', 'load_coverage',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'max_bad_samples', 'model_wrapper_cfg',
    'resume_schedule', 'runner_type', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip
# Customary names of variables in a config file that come close to a key.
VARIABLES = {'gallery_dataloader', 'pipeline', 'test_pipeline', 'train_pipeline', 'tta_cfg', 'val_pipeline'}


def config_files() -> dict[str, Path]:
    """Path of each config that comes with the package, by its file name without ``.py``; no ``_base_``."""
    if not (folder := shipped('configs')):
        raise InputError('this installation has no configs; install mmvisiongru again')
    return {path.stem: path for path in sorted(folder.rglob('*.py')) if '_base_' not in path.parts}


def list_configs(pattern: str = '*') -> list[str]:
    """Names of the configs that come with the package.

    Args:
        pattern (str): With wildcards, such as ``'*_upernet_*'``.

    Returns:
        list[str]: In alphabetical order.

    Examples:
        >>> from mmvisiongru.apis import list_configs
        >>> 'visiongru-tiny_8xb128_in1k' in list_configs('visiongru-tiny*')
        True
    """
    return sorted(match(config_files(), pattern))


def get_config(name: str, cfg_options: dict | None = None, required: Iterable[str] = ()) -> Config:
    """Read a config.

    Args:
        name (str): A file, or the name of a config that comes with the package.
        cfg_options (dict, optional): Settings over those of the file, under dotted names.
        required (Iterable[str]): Top-level keys that must have a value.

    Raises:
        InputError: There is no such config, a key is misspelt or missing, or a setting does not fit.

    Examples:
        >>> from mmvisiongru.apis import get_config
        >>> cfg = get_config('visiongru-tiny_8xb128_in1k', {'train_cfg.max_epochs': 100})
        >>> cfg.model.backbone.arch, cfg.train_cfg.max_epochs
        ('tiny', 100)
    """
    path = _find(name)
    try:
        cfg = Config.fromfile(path)
    # A config is a program, and fails in any way that a program can.
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(path)]
        where = f'{path}:{lines[-1]}' if lines else path
        raise InputError(f'config file {where}: {in_one_line(error)}') from error
    check_keys(cfg)
    merge_options(cfg, cfg_options or {})
    check_required(cfg, required)
    return cfg


def merge_options(cfg: Config, options: dict) -> None:
    """Merge settings into a config, under dotted names; InputError if one does not fit or has no effect."""
    check_options(cfg, options)
    try:
        cfg.merge_from_dict(options)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        where = cfg.filename or cfg.model.type
        raise InputError(f'--cfg-options does not fit {where}: {in_one_line(error)}') from error


def check_required(cfg: Config, keys: Iterable[str]) -> None:
    """Refuse a config in which a top-level key has no value."""
    if missing := ', '.join(key for key in keys if cfg.get(key) is None):
        raise InputError(f'config file {cfg.filename} has no {missing}; is it a part for `_base_`?')


def _find(name: str) -> str:
    """The path of a config."""
    if osp.isfile(name):
        return name
    if not name.endswith('.py'):
        if path := config_files().get(name):
            return str(path)
        hint = did_you_mean(name, config_files()) or '; mmvisiongru.apis.list_configs() lists them'
        raise InputError(f'no config is named {name!r}{hint}')
    if not (folder := Path(name).parent).is_dir():
        raise InputError(f'config file {name} does not exist: there is no folder {folder}')
    near = {path.name: str(path) for path in folder.glob('*.py')}
    hint = did_you_mean(osp.basename(name), near, show=near.get)
    raise InputError(f'config file {name} does not exist{hint}')


def check_keys(cfg: Config) -> None:
    """Refuse top-level keys that are close to a known one; a file may hold variables of any other name."""
    # to_dict() leaves out the classes that a config imports.
    for key in sorted(cfg.to_dict().keys() - KNOWN_KEYS - VARIABLES):
        if hint := did_you_mean(key, KNOWN_KEYS, cutoff=0.8):
            raise InputError(f'unknown key {key!r} in config {cfg.filename}{hint}')


def check_options(cfg: Config, options: Iterable[str]) -> None:
    """Refuse settings whose top-level key is neither known nor in the config, or a variable of its file."""
    for option in options:
        key = option.split('.')[0]
        if key in KNOWN_KEYS:
            continue
        if key not in cfg:
            near = did_you_mean(key, KNOWN_KEYS | set(cfg), cutoff=0.8)
            raise InputError(f'unknown key {key!r} in --cfg-options {option}{near}')
        # The file used its variables while it was read; setting one now would change nothing.
        values = [found for name in cfg if name in KNOWN_KEYS for found in settings(cfg[name], name)]
        used = [place for place, value in values if value == cfg[key]]
        if used and not isinstance(cfg[key], (bool, type(None))):
            raise InputError(
                f'--cfg-options {option} would only change a variable of the config file; '
                f'set {some(used)} instead'
            )


def settings(node, place: str) -> Iterator[tuple[str, object]]:
    """All values in a part of a config, collections included, each with its dotted name."""
    yield place, node
    if isinstance(node, (dict, list, tuple)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from settings(child, f'{place}.{key}')


def parts(cfg: Config, *keys: str) -> Iterator[tuple[str, dict]]:
    """All dictionaries under top-level keys of a config, each with its dotted name."""
    for key in filter(cfg.get, keys):
        yield from ((place, node) for place, node in settings(cfg[key], key) if isinstance(node, dict))


def type_name(node: dict) -> str:
    """The type of a part of a config, which may be a class or the full name of one, without its scope."""
    kind = node.get('type', '')
    return getattr(kind, '__name__', str(kind)).split('.')[-1]


def datasets(cfg: Config, dataloaders: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """The data sets of dataloaders with their places, those inside RepeatDataset and the like too."""
    for place, node in parts(cfg, *dataloaders):
        if {'data_root', 'data_prefix'} & set(node):
            yield place, node


def pipeline_of(cfg: Config, dataloader: str) -> list[dict]:
    """The transforms of a dataloader's data set, or of the first one inside ConcatDataset and the like."""
    return next((node['pipeline'] for _, node in parts(cfg, dataloader) if 'pipeline' in node), [])


def replace_sync_bn(model: dict) -> bool:
    """Replace SyncBN by BN wherever the config of a model names it: it needs GPUs. Returns whether it did."""
    found = False
    for _, node in settings(model, 'model'):
        if isinstance(node, dict) and node.get('type') in ('SyncBN', 'MMSyncBN'):
            node['type'], found = 'BN', True
    return found
