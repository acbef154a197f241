"""Checkpoints that an ``init_cfg`` names, to start a part of a model from."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.model import PretrainedInit
from torch import nn

from mmvisiongru.errors import InputError

from .load import Checkpoint, data_only, read_checkpoint, state_dict_of
from .match import RELEASED, is_released, plain_model, unfit_keys


@contextmanager
def pretrained(model: nn.Module) -> Iterator[None]:
    """Within the context, ``init_weights()`` of the model loads only checkpoints that fit and hold data only.

    Each file is read once. Keys that do not fit are logged by mmengine.

    Raises:
        InputError: None of the parameters of a part is in the checkpoint that its
            ``init_cfg=dict(type='Pretrained')`` names; the message says what to set.
    """
    known = {}
    for name, module in plain_model(model).named_modules():
        # Modules with an own init_weights() translate names while they load.
        loads = getattr(type(module), 'init_weights', None)
        if loads and loads.__module__.startswith(('mmengine.', 'mmvisiongru.')):
            for path, prefix in _sources(module):
                known[path] = known.get(path) or read_checkpoint(path)
                place = '.'.join(filter(None, ('model', name, 'init_cfg'))) if name else 'init_cfg'
                _check(module, known[path], prefix, place)
    with data_only(*known.values()):
        yield


def _sources(module: nn.Module) -> list[tuple[str, str | None]]:
    cfgs = getattr(module, 'init_cfg', None) or []
    cfgs = cfgs if isinstance(cfgs, (list, tuple)) else [cfgs]
    cfgs = [cfg for cfg in cfgs if cfg.get('type') in ('Pretrained', PretrainedInit)]
    return [(cfg['checkpoint'], cfg.get('prefix')) for cfg in cfgs]


def _check(module: nn.Module, checkpoint: Checkpoint, prefix: str | None, place: str) -> None:
    own, state = module.state_dict(), state_dict_of(checkpoint.content, prefix)
    if _fitting(own, state):
        return
    if is_released(checkpoint.state_dict):
        raise InputError(
            f'{place}.checkpoint={checkpoint.path} {RELEASED}, and set {place}.checkpoint to the result'
        )
    better = _fitting_prefix(own, checkpoint.state_dict)
    hint = '' if better is None else f'; set {place}.prefix={better or None!r}'
    raise InputError(
        f'{place}: in {checkpoint.path}, under prefix {prefix!r}, is none of the {len(own)} parameters of '
        f'{type(module).__name__} ({"; ".join(unfit_keys(module, state)[:3])}){hint}'
    )


def _fitting(own: dict, state: dict, prefix: str = '') -> int:
    return sum(prefix + k in state and state[prefix + k].shape == v.shape for k, v in own.items())


def _fitting_prefix(own: dict, state: dict) -> str | None:
    """Find the prefix under which most parameters of a module are, None if there is none."""
    first = next(iter(own))
    prefixes = [key[: -len(first)] for key in state if key == first or key.endswith(f'.{first}')]
    best = max(prefixes, key=lambda prefix: _fitting(own, state, prefix), default=None)
    return best if best is not None and _fitting(own, state, best) else None
