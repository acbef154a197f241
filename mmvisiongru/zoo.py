"""Models by name: from a config of this package, of mmpretrain or of mmseg, or a single backbone."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from mmvisiongru.checkpoint.published import published_weights
from mmvisiongru.config import config_files, datasets, get_config, merge_options, replace_sync_bn
from mmvisiongru.errors import InputError, did_you_mean
from mmvisiongru.launch.checks import check_config
from mmvisiongru.launch.prepare import building


def model_config(name: str, cfg_options: dict | None = None) -> Config:
    """Read the config of a model.

    Args:
        name (str): A config file; the name of a config of this package, of a model of mmpretrain's index, or
            of a config that mmseg ships; or a backbone as ``SCOPE.TYPE:ARCH``, e.g.
            ``mmpretrain.ConvNeXt:tiny``.
        cfg_options (dict, optional): Settings over those of the config, under dotted names.

    Raises:
        InputError: There is no model of that name, or a setting does not fit.
    """
    if name.endswith('.py') or name in config_files():
        return get_config(name, cfg_options, ('model',))
    if name.startswith(('mmpretrain.', 'mmseg.', 'mmdet.', 'mmvisiongru.')):
        kind, _, arch = name.partition(':')
        model = dict(type=kind, **(dict(arch=arch) if arch else {}))
        cfg = Config(dict(model=model, default_scope=kind.partition('.')[0]))
    elif read := _foreign_configs().get(name):
        cfg = read()
    elif name in published_weights():
        raise InputError(f'{name!r} names weights: get_model({name!r}, pretrained=True) loads them')
    else:
        hint = did_you_mean(name, [*config_files(), *_foreign_configs()])
        raise InputError(
            f'{name!r} is neither a config file (*.py), nor in mmvisiongru.apis.list_configs(), nor a model '
            f'of mmpretrain or mmseg, nor a backbone (SCOPE.TYPE:ARCH){hint}'
        )
    merge_options(cfg, cfg_options or {})
    return cfg


def build_model(model: str | Config, backend: str | None = None, device: str = 'cpu') -> nn.Module:
    """Build a model with random weights.

    Args:
        model (str | Config): A config, or the name of one for :func:`model_config`. Of a config for
            test-time augmentation the model that sees each view is built.
        backend (str, optional): Backend of the scan of VisionGRU and of Bi-WKV; default: the config's.
        device (str): Where weights are created. Some backbones of mmpretrain fail on the meta device; build
            them on the CPU and move them.

    Raises:
        InputError: There is no such model, or its config names what does not exist; one line.
    """
    cfg = model_config(model) if isinstance(model, str) else model
    scope, settings = cfg.get('default_scope') or 'mmengine', single_view(cfg)
    replace_sync_bn(settings)
    check_config(Config(dict(model=settings, default_scope=scope)))
    # The Runner, too, passes a data_preprocessor beside the model on to the model.
    if cfg.get('data_preprocessor'):
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    backbone = settings.get('backbone') or settings
    with building(cfg), DefaultScope.overwrite_default_scope(scope), torch.device(device):
        if backend:
            kind = backbone.type if inspect.isclass(backbone.type) else MODELS.get(backbone.type)
            arguments = inspect.signature(kind).parameters if kind else ()
            backbone.update({name: backend for name in arguments if name.endswith('_backend')})
        return MODELS.build(settings)


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: those of its first convolution."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def single_view(cfg: Config) -> dict:
    """A copy of the settings of the model, without a wrapper for test-time augmentation."""
    return deepcopy(cfg.model.get('module') or cfg.model)


def lazy_dataset(cfg: Config, dataloader: str):
    """Build a data set of a config without reading its data; None if it cannot be built so."""
    for _, dataset in datasets(cfg, (dataloader,)):
        # Some data sets read their files while they are built.
        with suppress(Exception), DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            return DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    return None


def dataset_meta(cfg: Config) -> dict | None:
    """Classes and palette of the test data set; None if its classes are not known without its data."""
    meta = getattr(lazy_dataset(cfg, 'test_dataloader'), 'metainfo', {})
    return {k: meta[k] for k in ('classes', 'palette') if k in meta} if meta.get('classes') else None


@cache
def _foreign_configs() -> dict[str, Callable[[], Config]]:
    """Functions that read the configs of mmseg and of mmpretrain's index, as far as these are installed."""
    readers = {}
    with suppress(ImportError):
        import mmseg

        paths = (Path(mmseg.__file__).parent / '.mim/configs').rglob('*.py')
        readers |= {p.stem: partial(Config.fromfile, p) for p in paths if '_base_' not in p.parts}
    with suppress(ImportError):
        from mmpretrain import ModelHub, list_models

        readers |= {name: lambda name=name: ModelHub.get(name).config for name in list_models()}
    return readers
