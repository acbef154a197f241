"""Check what a config says before anything is built: names, sizes, folders of data."""

import inspect
import io
import os
import os.path as osp
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from importlib import import_module

import mmengine.registry
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.utils import get_object_from_string
from torch.utils.data import DataLoader

# Makes the classes of this package known under their scope.
import mmvisiongru.registry
from mmvisiongru.config import DATALOADERS, KNOWN_KEYS, datasets, parts, type_name
from mmvisiongru.errors import InputError, did_you_mean, in_one_line
from mmvisiongru.mmcv_ops import import_mmdet, provide_ops
from mmvisiongru.sample_checks import check_list

ROOTS = [r for r in vars(mmengine.registry).values() if isinstance(r, Registry) and r.parent is None]
# Where the class that is meant may be, besides the scope of a config.
SCOPES = ('mmengine', 'mmpretrain', 'mmseg', 'mmvisiongru')
# Data sets of mmpretrain that download their data.
DOWNLOADED = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST')
# Warnings of the libraries that say nothing about a run.
KNOWN_WARNINGS = ('Default ``avg_non_ignore`` is False', 'The draw is False', "'pin_memory' argument is set")


def check_config(cfg: Config, dataloaders: Iterable[str] = ()) -> None:
    """Raise InputError if a config, or a folder of the data that a script reads, cannot be used."""
    # The libraries are imported here, and each prints which of its optional parts are missing.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        if cfg.get('default_scope') == 'mmdet':
            import_mmdet()
        check_names(cfg)
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings('ignore', message=message)
    check_sizes(cfg)
    check_data(cfg, dataloaders)


def check_names(cfg: Config) -> None:
    """Refuse misspelt types and arguments, and any unknown one of a hook. mmengine refuses the others."""
    for place, node in parts(cfg, *filter(KNOWN_KEYS.__contains__, cfg)):
        (key, _, name), scope = place.partition('.'), node.get('_scope_', cfg.get('default_scope'))
        for type_key in ('type', 'ema_type'):
            kind = node.get(type_key)
            if isinstance(kind, str) and not _find(kind, scope) and (hint := near_type(kind, scope)):
                raise InputError(f'{place}.{type_key}: {kind!r} is not registered{hint}')
        if 'type' in node:
            classes = list(filter(inspect.isclass, _find(node['type'], scope)))
            if any(issubclass(each, EMAHook) for each in classes):
                average = _find(node.get('ema_type', 'ExponentialMovingAverage'), scope)
                # If the class of the average is unknown, so are its arguments.
                classes = average and classes + average
            _check_arguments(place, node, classes)
        elif place in DATALOADERS:
            _check_arguments(place, node, [DataLoader])
        elif place == 'train_cfg':
            _check_arguments(place, node, [EpochBasedTrainLoop, IterBasedTrainLoop])
        elif key in ('default_hooks', 'custom_hooks') and name and '.' not in name:
            hint = did_you_mean(name, [other for other in cfg[key] if other != name])
            raise InputError(f'{place} in {cfg.filename} has no type{hint}')


def _check_arguments(place: str, node: dict, classes: list[type]) -> None:
    known = {'type', '_scope_', 'priority'}.union(*map(arguments_of, classes))
    # mmpretrain takes magnitude_key out of what RandAugment chooses from.
    for key in set(node) - known - {'magnitude_key'} if classes else ():
        hint = did_you_mean(key, known, cutoff=0.75)
        if hint or issubclass(classes[0], Hook):
            hint = hint or f'; it takes {", ".join(sorted(known))}'
            raise InputError(f'unknown key {key!r} in {place}{hint}')


def _registries(*scopes: str | None) -> Iterator[Registry]:
    """The registries of all kinds in some scopes, of which only the first must be possible to import."""
    for root in ROOTS:
        for registry in (*root.children.values(), root):
            if registry.scope not in scopes:
                continue
            try:
                registry.import_from_location()
            except ImportError as error:
                if registry.scope == scopes[0]:
                    raise InputError(f'{registry.scope} cannot be imported: {in_one_line(error)}') from error
            else:
                yield registry


def _find(kind, scope: str | None) -> list:
    """Find what a type names in the registries, one class as a rule, or what it is."""
    if not isinstance(kind, str):
        return [kind]
    prefix, _, name = kind.rpartition('.')
    if prefix == 'mmdet':
        provide_ops()
    # Importing the module adds the registries of the scope to those of mmengine.
    with suppress(ImportError):
        import_module(f'{prefix or scope or "mmengine"}.registry')
        if prefix == 'mmvisiongru':
            # Heads are imported when one is asked for.
            mmvisiongru.registry.MODELS.get(name)
    names = [registry.module_dict for registry in _registries(prefix or scope, 'mmengine')]
    found = [each[name] for each in names if name in each]
    if prefix and not found:
        # The full name of a class that is in no registry.
        with suppress(Exception):
            found = list(filter(None, [get_object_from_string(kind)]))
    return found


def near_type(kind: str, scope: str | None) -> str:
    """End a message with the class that an unknown type may have meant, or with what is not installed."""
    prefix, _, name = kind.rpartition('.')
    names = {}
    for registry in _registries(*([prefix] if prefix else [scope, *SCOPES])):
        # A class of the scope in use needs no prefix, and goes before others of its name.
        own = not prefix and registry.scope in (scope, 'mmengine')
        shown = {each: each if own else f'{registry.scope}.{each}' for each in registry.module_dict}
        names = names | shown if own else shown | names
    if prefix and not names:
        return f'; is {prefix} installed?'
    hint = did_you_mean(name, names, cutoff=0.75, show=lambda near: repr(names[near]))
    return hint if scope else f"{hint or ';'} or set default_scope, to 'mmseg' or 'mmpretrain' for theirs"


def arguments_of(kind: type) -> set[str]:
    """Names of the arguments of a class, and of its bases where it passes ``**kwargs`` on to them."""
    names = set()
    for base in kind.__mro__:
        if '__init__' in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            # These hooks keep unknown arguments for a call in mid-run, which then fails.
            if base in (CheckpointHook, EMAHook) or all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return names - {'self'}


def check_sizes(cfg: Config) -> None:
    """Refuse sliding windows without a size, and training images that are padded beyond their crop."""
    kinds = _find((cfg.get('model') or {}).get('type'), cfg.get('default_scope'))
    for place, node in parts(cfg, 'model'):
        setting = f'{place}.mode={(mode := node.get("mode", "whole"))!r} in {cfg.filename}'
        known = mode in ('whole', 'slide') or any(hasattr(kind, f'{mode}_inference') for kind in kinds)
        if place.endswith('test_cfg') and not known:
            raise InputError(f"{setting} must be 'whole' or 'slide'")
        missing = [f'{place}.{key}' for key in ('crop_size', 'stride') if not node.get(key)]
        if mode in ('slide', 'slide_flip') and missing:
            raise InputError(f'{setting} needs {" and ".join(missing)}')
    crops = [node['crop_size'] for _, node in parts(cfg, 'train_dataloader') if node.get('crop_size')]
    size = ((cfg.get('model') or {}).get('data_preprocessor') or {}).get('size')
    if crops and size:
        crop = tuple(crops[-1]) if isinstance(crops[-1], (list, tuple)) else (crops[-1], crops[-1])
        if any(padded > cut for padded, cut in zip(size, crop, strict=True)):
            raise InputError(
                f'model.data_preprocessor.size={tuple(size)} in {cfg.filename} pads crops of {crop} with '
                f'ignored pixels, which dilute the loss; set model.data_preprocessor.size={crop}'
            )


def check_data(cfg: Config, dataloaders: Iterable[str]) -> None:
    """Refuse data folders that are missing, empty, or have a hidden folder, which would be read as data."""
    for place, dataset in datasets(cfg, dataloaders):
        ann_file = dataset.get('ann_file') or ''
        if not isinstance(ann_file, str):
            raise InputError(f'{place}.ann_file in {cfg.filename} must be one path, got {ann_file!r}')
        for key, folder in (folders := _folders(dataset)).items():
            try:
                names, state = os.listdir(folder), 'is empty'
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                names, state = [], 'does not exist' if missing else f'cannot be read ({error.strerror})'
            if not names:
                hint = cfg.get('data_hint') or f'put the data there or set {place}.data_root'
                raise InputError(f'data folder {folder} ({place}.{key}) {state}; {hint}')
            hidden = [n for n in names if n.startswith('.') and osp.isdir(osp.join(folder, n))]
            if hidden and (key != 'data_root' or len(folders) == 1) and not ann_file:
                raise InputError(
                    f'data folder {folder} ({place}.{key}) has a hidden folder {hidden[0]}, which would be '
                    'read as data or as a class; delete it'
                )
        path = osp.join(dataset.get('data_root') or '', ann_file)
        check_list(path, place)
        key = place.split('.')[0].replace('dataloader', 'evaluator')
        metric = cfg.get(key)
        scored = metric.get('ann_file') if isinstance(metric, dict) else None
        if scored and osp.realpath(scored) != osp.realpath(path):
            raise InputError(f'{key}.ann_file={scored}, but {place} reads {path}; set {key}.ann_file={path}')


def _folders(dataset: dict) -> dict[str, str]:
    """The folders of a data set by the settings that name them; none if they are not on this machine."""
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or ''
    kind = type_name(dataset)
    if kind in DOWNLOADED or dataset.get('backend_args') or '://' in root:
        return {}
    if kind == 'ImageNet' and not prefix:
        prefix = dataset.get('split', '')
    folders = {'data_root': root}
    for name, part in (prefix if isinstance(prefix, dict) else {'': prefix}).items():
        if isinstance(part, str) and part:
            folders[f'data_prefix.{name}'.rstrip('.')] = osp.join(root, part)
    return {key: osp.abspath(osp.expanduser(folder)) for key, folder in folders.items() if folder}
