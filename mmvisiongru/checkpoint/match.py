"""Compare the weights of a checkpoint with a model, and load them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.model import BaseTTAModel, PretrainedInit, is_model_wrapper
from torch import nn

from mmvisiongru.errors import InputError, some

from .load import Checkpoint, data_only, read_checkpoint, state_dict_of


def unfit_keys(own: dict, state: dict) -> list[str]:
    """List each weight of a model that ``state`` has in another shape, lacks, or has in addition."""
    lines = [
        f'shape of {k}: {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the model'
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    lines += [f'missing {k}' for k in own if k not in state]
    return lines + [f'unexpected {k}' for k in state if k not in own]


def plain_model(model: nn.Module) -> nn.Module:
    """Get the model inside wrappers for processes or test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def check_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    coverage: float | None = None,
    setting: str = '',
    prefix: str | None = None,
) -> list[str]:
    """Compare the weights of a checkpoint with a model's, as a Runner holds it, or with a part of it.

    Args:
        coverage (float, optional): The share of the model's keys that must be there in their shape, at least
            one; InputError if fewer are. None: all of them, and no others.
        setting (str): The setting of the config that names the checkpoint, for the message.
        prefix (str, optional): Prefix of the names of the weights, as in ``init_cfg``.

    Returns:
        list[str]: One line for each key that does not fit.
    """
    model, weights = plain_model(model), state_dict_of(checkpoint.content, prefix)
    source = f'checkpoint {checkpoint.path}' + (f' ({setting})' if setting else '')
    own, weights = _compared(model.state_dict()), _compared(weights)
    unfit, fitting = unfit_keys(own, weights), _fitting(own, weights)
    if not fitting and any('snake_gru.' in key for key in checkpoint.state_dict):
        raise InputError(
            f'{source} is of the released VisionGRU code; convert it with '
            'tools/model_converters/official_to_mmvisiongru.py, and give the result'
        )
    if not fitting:
        held = f'it holds {some(checkpoint.state_dict)}, the model wants {some(own)}'
        why = some(unfit) if own.keys() & weights.keys() else held
        better = _best_prefix(own, checkpoint.state_dict) if setting.endswith('init_cfg') else None
        hint = '' if better is None else f'; set {setting}.prefix={better or None!r}'
        raise InputError(f'{source} matches no key of the model: {why}{hint}')
    if coverage is None and unfit:
        raise InputError(f'{source} does not fit the model: {some(unfit)}')
    if coverage is not None and fitting < coverage * len(own):
        raise InputError(
            f'{source} has {fitting} of the {len(own)} keys of the model, fewer than load_coverage='
            f'{coverage:g} requires: {some(unfit)}; if this is intended, set a lower load_coverage'
        )
    return unfit


def load_weights(model: nn.Module, checkpoint: Checkpoint | str) -> Checkpoint:
    """Load a checkpoint that fits the model in every key. Returns the checkpoint.

    Raises:
        InputError: The file is missing or damaged, would run code, or does not fit.

    Examples:
        >>> import torch
        >>> from mmvisiongru.checkpoint import Checkpoint, load_weights
        >>> first, second = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        >>> _ = load_weights(second, Checkpoint('first.pth', first.state_dict()))
        >>> torch.equal(first.weight, second.weight)
        True
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    check_weights(model, checkpoint)
    plain_model(model).load_state_dict(checkpoint.state_dict, strict=False)
    return checkpoint


@contextmanager
def pretrained(model: nn.Module) -> Iterator[None]:
    """Within the context, ``init_weights()`` of the model loads only checkpoints that fit and hold data only.

    Each file is read once. InputError if none of the parameters of a part is in the checkpoint that its
    ``init_cfg=dict(type='Pretrained')`` names. mmengine logs other keys that do not fit.
    """
    known = {}
    for name, module in plain_model(model).named_modules():
        cfgs = getattr(module, 'init_cfg', None) or []
        # A module with an init_weights() of its own translates the names of weights while it loads them.
        if not getattr(module, 'init_weights', print).__module__.startswith(('mmengine.', 'mmvisiongru.')):
            continue
        for cfg in cfgs if isinstance(cfgs, (list, tuple)) else [cfgs]:
            if cfg.get('type') in ('Pretrained', PretrainedInit):
                path, setting = cfg['checkpoint'], f'model.{name}.init_cfg' if name else 'init_cfg'
                known[path] = known.get(path) or read_checkpoint(path)
                check_weights(module, known[path], 0.0, setting, cfg.get('prefix'))
    with data_only(*known.values()):
        yield


def _compared(state: dict) -> dict:
    """The tensors, without the counter of batch norm, which older files lack and mmengine does not miss."""
    return {k: v for k, v in state.items() if torch.is_tensor(v) and not k.endswith('num_batches_tracked')}


def _fitting(own: dict, state: dict, prefix: str = '') -> int:
    return sum(prefix + k in state and state[prefix + k].shape == v.shape for k, v in own.items())


def _best_prefix(own: dict, state: dict) -> str | None:
    """Find the prefix under which most parameters of a module are, None if there is none."""
    first = next(iter(own))
    prefixes = [key.removesuffix(first) for key in state if key == first or key.endswith(f'.{first}')]
    best = max(prefixes, key=lambda prefix: _fitting(own, state, prefix), default=None)
    return best if best is not None and _fitting(own, state, best) else None
