"""Whether a checkpoint fits a model."""

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmvisiongru.errors import InputError

from .load import load_checkpoint_file

# What to do with a file of the released code, after its name.
RELEASED = (
    'is of the released VisionGRU code; convert it with tools/model_converters/official_to_mmvisiongru.py'
)
# A message stays one line on a screen or two, also when every key differs.
SHOWN_KEYS = 4


def state_dict_of(checkpoint, prefix: str | None = None) -> dict[str, Tensor]:
    """The weights in a loaded checkpoint, those under ``prefix`` if one is given, without it.

    As mmengine loads them: without a prefix, the ``module.`` of a wrapped model is taken off. What holds no
    weights gives none.

    Examples:
        >>> import torch
        >>> from mmvisiongru.checkpoint import state_dict_of
        >>> checkpoint = {'state_dict': {'backbone.x': torch.zeros(1), 'head.x': torch.ones(1)}}
        >>> state_dict_of(checkpoint, prefix='backbone.')
        {'x': tensor([0.])}
    """
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
    state = {k: v for k, v in state.items() if torch.is_tensor(v)} if isinstance(state, dict) else {}
    if not prefix:
        return {k.removeprefix('module.'): v for k, v in state.items()}
    prefix = prefix.rstrip('.') + '.'
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def unfit_keys(module: nn.Module, state: dict) -> list[str]:
    """One line for each parameter or buffer that ``state`` lacks, holds in another shape, or has too many.

    Examples:
        >>> import torch
        >>> from mmvisiongru.checkpoint import unfit_keys
        >>> unfit_keys(torch.nn.Linear(2, 3), {'weight': torch.zeros(4, 2), 'scale': torch.zeros(1)})
        ['missing bias', 'shape of weight: (4, 2) in the file, (3, 2) in the model', 'unexpected scale']
    """
    own = module.state_dict()
    lines = [f'missing {k}' for k in own if k not in state]
    lines += [
        f'shape of {k}: {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the model'
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    return lines + [f'unexpected {k}' for k in state if k not in own]


def is_released(state: dict) -> bool:
    """Whether the names of weights are those of the released code."""
    return any('snake_gru.' in key for key in state)


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside wrappers for processes or test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def read_weights(path: str, resume: bool = False) -> dict[str, Tensor]:
    """Names and shapes (as tensors without storage) of the weights in a checkpoint.

    Args:
        path (str): A file or an address that mmengine can load.
        resume (bool): Demand the state of a training run as well.

    Raises:
        InputError: The file is missing, damaged, would run code, or does not hold what is needed.
    """
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    weights = {k: v.to('meta') for k, v in state_dict_of(checkpoint).items()}
    if not weights:
        raise InputError(f'checkpoint {path} holds no weights')
    if resume and not {'meta', 'message_hub'} <= set(checkpoint):
        raise InputError(
            f'checkpoint {path} holds weights but no training state to resume; '
            f'to start from its weights: --cfg-options load_from={path}'
        )
    return weights


def check_weights(
    model: nn.Module, weights: dict[str, Tensor], path: str, coverage: float | None = None
) -> list[str]:
    """Compare the weights of a checkpoint with a model's.

    Args:
        model (nn.Module): The model, as a Runner holds it.
        weights (dict): What :func:`read_weights` gave.
        path (str): The checkpoint, for the message.
        coverage (float, optional): The share of the model's keys that must be there in their shape, to start
            training from. None: all of them, and no others.

    Returns:
        list[str]: One line for each key that does not fit.

    Raises:
        InputError: No key fits, or fewer than demanded.
    """
    model = plain_model(model)
    # As in mmengine: older files lack the counter of batch norm.
    own = {k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    unfit = [line for line in unfit_keys(model, weights) if not line.endswith('num_batches_tracked')]
    if not set(own) & set(weights):
        if is_released(weights):
            raise InputError(f'checkpoint {path} {RELEASED}, and give the result')
        raise InputError(
            f'checkpoint {path} matches no key of the model: it holds {_some(weights)}, the model wants '
            f'{_some(own)}'
        )
    if coverage is None and unfit:
        raise InputError(f'checkpoint {path} does not fit the model: {_some(unfit)}')
    fitting = sum(k in weights and weights[k].shape == v.shape for k, v in own.items())
    if coverage is not None and fitting < coverage * len(own):
        raise InputError(
            f'checkpoint {path} has {fitting} of the {len(own)} keys of the model, load_coverage='
            f'{coverage:g} demands more: {_some(unfit)}; if you mean that, state a lower load_coverage'
        )
    return unfit


def load_weights(model: nn.Module, path: str) -> None:
    """Load a checkpoint that fits the model in every key.

    Raises:
        InputError: The file is missing or damaged, would run code, or does not fit.

    Examples:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from mmvisiongru.checkpoint import load_weights
        >>> first, second = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(first.state_dict(), f'{folder}/weights.pth')
        ...     load_weights(second, f'{folder}/weights.pth')
        >>> torch.equal(first.weight, second.weight)
        True
    """
    weights = state_dict_of(load_checkpoint_file(path))
    check_weights(model, weights, path)
    model.load_state_dict(weights, strict=False)


def _some(items) -> str:
    items = list(items)
    more = f' and {len(items) - SHOWN_KEYS} more' if len(items) > SHOWN_KEYS else ''
    return ', '.join(items[:SHOWN_KEYS]) + more
