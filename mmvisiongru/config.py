"""Configs as the scripts read them: checked before anything is built."""

import ast
import inspect
import os
import os.path as osp
import traceback
from collections.abc import Iterable, Iterator
from fnmatch import filter as match
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmvisiongru.errors import InputError, did_you_mean, in_one_line

PACKAGE = Path(__file__).resolve().parent
# Keys that mmengine or our scripts read, besides the arguments of Runner.
OTHER_KEYS = {
    'activation_checkpointing',
    'channels_last',
    'compile',
    'custom_imports',
    'data_hint',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'load_coverage',
    'max_bad_samples',
    'model_wrapper_cfg',
    'resume_schedule',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}
# Customary names of variables in a config file that come close to a key.
VARIABLES = {'gallery_dataloader', 'pipeline', 'test_pipeline', 'train_pipeline', 'val_pipeline'}


def config_files() -> dict[str, Path]:
    """File of each config by its name, the file name without ``.py``; parts for ``_base_`` are left out."""
    # An installed package carries its configs, a clone that was not installed has them beside it.
    folders = (folder for folder in (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs'))
    folder = next(filter(Path.is_dir, folders), None)
    if folder is None:
        raise InputError(f'no configs in {PACKAGE / ".mim"}; install mmvisiongru again')
    paths = (path for path in sorted(folder.resolve().rglob('*.py')) if '_base_' not in path.parts)
    return {path.stem: path for path in paths}


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
        >>> list_configs('resnet*')
        []
    """
    return sorted(match(config_files(), pattern))


def get_config(name: str, cfg_options: dict | None = None) -> Config:
    """Read a config.

    Args:
        name (str): A file, or the name of a config that comes with the package.
        cfg_options (dict, optional): Settings over those of the file, under dotted names.

    Returns:
        Config: With all that it inherits.

    Raises:
        InputError: There is no such config, or a setting does not fit; the message says what is near.

    Examples:
        >>> from mmvisiongru.apis import get_config
        >>> cfg = get_config('visiongru-tiny_8xb128_in1k', {'train_cfg.max_epochs': 100})
        >>> cfg.model.backbone.arch, cfg.train_cfg.max_epochs
        ('tiny', 100)
    """
    known = {} if name.endswith('.py') else config_files()
    if name in known:
        name = str(known[name])
    elif not name.endswith('.py'):
        hint = did_you_mean(name, known) or '; mmvisiongru.apis.list_configs() lists them'
        raise InputError(f'no config is named {name!r}{hint}')
    return load_config(name, cfg_options)


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
    check_variables(cfg)
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


def check_variables(cfg: Config) -> None:
    """Refuse a variable of the config file itself, such as ``data_root``, that was meant to change a setting.

    What a base made of its variable of that name is done by then, so an assignment that nothing reads in the
    file changes nothing. Only a name that a base or a setting has is refused; others may be for a program.
    A file without a base, such as the one that mmengine writes to each work dir, has them written out.

    Raises:
        InputError: There is one; the message says what to set instead.
    """
    if not cfg.filename.endswith('.py'):
        return
    tree = ast.parse(Path(cfg.filename).read_text())
    read = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    # A config that mmengine wrote holds the variables of the files that it came from. In configs with
    # read_base all that is named is imported, and read so.
    if 'read_base' in read or not _bases(cfg.filename, tree):
        return
    if '_base_' not in _assigned(tree):
        return
    for node in tree.body:
        names = (
            [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []
        )
        for name in names:
            if name in read | known_keys() or name.startswith('_') or name not in cfg:
                continue
            if places := _meant(cfg, tree, name):
                raise InputError(
                    f'{name} in line {node.lineno} of {cfg.filename} is a variable that nothing reads there; '
                    f'set {", ".join(places)} instead'
                )


def _assigned(tree: ast.Module) -> set[str]:
    """Names that the file assigns to."""
    return {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _meant(cfg: Config, tree: ast.Module, name: str) -> list[str]:
    """The settings that a variable may have been meant to change."""
    for base in _bases(cfg.filename, tree):
        inherited = Config.fromfile(base)
        if name in inherited:
            return [] if inherited[name] == cfg[name] else list(_places(cfg, inherited[name]))

    def walk(node, place):
        if isinstance(node, dict):
            yield from (f'{place}.{key}' for key in node if key == name)
        if isinstance(node, (dict, list, tuple)):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                yield from walk(child, f'{place}.{key}')

    return [place for key in known_keys() if key in cfg for place in walk(cfg[key], key)]


def _bases(path: str, tree: ast.Module) -> list[str]:
    """The files that a config file inherits from, as far as they are beside it."""
    nodes = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_'
    ]
    try:
        values = [ast.literal_eval(node) for node in nodes]
    # An expression, which mmengine evaluates.
    except ValueError:
        return []
    names = [name for value in values for name in ([value] if isinstance(value, str) else value)]
    return [osp.join(osp.dirname(path), name) for name in names if '::' not in name]


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


def _near_files(path: str) -> str:
    folder = osp.dirname(path) or '.'
    if not osp.isdir(folder):
        return f': there is no folder {folder}'
    return did_you_mean(
        osp.basename(path), os.listdir(folder), show=lambda near: osp.join(osp.dirname(path), near)
    )
