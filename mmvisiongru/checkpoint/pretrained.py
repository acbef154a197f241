"""Checkpoints that an ``init_cfg`` names, to start a part of a model from."""

from logging import WARNING

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import nn

from mmvisiongru.errors import InputError
from mmvisiongru.files import is_local

from .load import load_checkpoint_file
from .match import RELEASED, is_released, plain_model, state_dict_of, unfit_keys


def pretrained_paths(module: nn.Module) -> list[tuple[str, str | None]]:
    """Checkpoint and prefix of each ``init_cfg=dict(type='Pretrained')`` of a module."""
    cfgs = getattr(module, 'init_cfg', None) or []
    cfgs = cfgs if isinstance(cfgs, (list, tuple)) else [cfgs]
    cfgs = [cfg for cfg in cfgs if cfg.get('type') in ('Pretrained', PretrainedInit)]
    return [(cfg['checkpoint'], cfg.get('prefix')) for cfg in cfgs]


def check_pretrained(module: nn.Module) -> None:
    """Check the checkpoint that a module's ``init_cfg=dict(type='Pretrained')`` names before it is loaded.

    Raises:
        InputError: No parameter of the module is in the file. A partial match is logged, key by key.
    """
    for path, prefix in pretrained_paths(module):
        if unfit := _unfit(module, path, prefix, 'init_cfg'):
            total = len(module.state_dict())
            fitting = total - sum(not line.startswith('unexpected') for line in unfit)
            print_log(
                f'{path}: {fitting} of {total} parameters of {type(module).__name__} loaded; not '
                'used:\n  ' + '\n  '.join(unfit),
                logger='current',
                level=WARNING,
            )


def check_all_pretrained(model: nn.Module) -> None:
    """Check each checkpoint that an ``init_cfg`` of a part of the model names, before any is loaded.

    Raises:
        InputError: None of its keys fits; the message says which ``init_cfg`` and what to set.
    """
    for name, module in plain_model(model).named_modules():
        # Others translate names while they load.
        loads = getattr(type(module), 'init_weights', None)
        if loads and loads.__module__.startswith(('mmengine.', 'mmvisiongru.')):
            for path, prefix in pretrained_paths(module):
                # What is far away is fetched when it is needed.
                if is_local(path):
                    _unfit(module, path, prefix, '.'.join(filter(None, ('model', name, 'init_cfg'))))


def _unfit(module: nn.Module, path: str, prefix: str | None, place: str) -> list[str]:
    """One line for each key that does not fit; InputError if none does."""
    checkpoint, own = load_checkpoint_file(path), module.state_dict()
    state = state_dict_of(checkpoint, prefix)
    unfit = unfit_keys(module, state)
    if any(k in state and state[k].shape == v.shape for k, v in own.items()):
        return unfit
    everything = state_dict_of(checkpoint)
    if is_released(everything):
        raise InputError(f'{place}.checkpoint={path} {RELEASED}, and set {place}.checkpoint to the result')
    better = _fitting_prefix(own, everything)
    hint = '' if better is None else f'; set {place}.prefix={better or None!r}'
    raise InputError(
        f'{place}: in {path}, under prefix {prefix!r}, is none of the {len(own)} parameters of '
        f'{type(module).__name__} ({"; ".join(unfit[:3])}){hint}'
    )


def _fitting_prefix(own: dict, state: dict) -> str | None:
    """The prefix under which most parameters of a module are found, None if there is none."""
    first = next(iter(own))
    prefixes = [key[: -len(first)] for key in state if key == first or key.endswith(f'.{first}')]

    def fitting(prefix):
        return sum(prefix + k in state and state[prefix + k].shape == v.shape for k, v in own.items())

    best = max(prefixes, key=fitting, default=None)
    return best if best is not None and fitting(best) else None
