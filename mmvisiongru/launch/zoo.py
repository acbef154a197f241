"""The configs that come with the package, by their names."""

from fnmatch import filter as match
from pathlib import Path

from mmengine.config import Config

from mmvisiongru.errors import InputError, did_you_mean

from .config import load_config

PACKAGE = Path(__file__).resolve().parents[1]


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
