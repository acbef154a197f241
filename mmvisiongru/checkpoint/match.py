"""Compare the weights of a checkpoint with a model."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from mmvisiongru.errors import InputError

from .load import Checkpoint, read_checkpoint

# What to do with a checkpoint of the released code, after its name.
RELEASED = (
    'is of the released VisionGRU code; convert it with tools/model_converters/official_to_mmvisiongru.py'
)
# A message lists at most this many keys.
SHOWN_KEYS = 4


def unfit_keys(module: nn.Module, state: dict) -> list[str]:
    """List each parameter or buffer that ``state`` lacks, has in another shape, or has in addition.

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
    """Get the model inside wrappers for processes or test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def check_weights(model: nn.Module, checkpoint: Checkpoint, coverage: float | None = None) -> list[str]:
    """Compare the weights of a checkpoint with a model's.

    Args:
        model (nn.Module): The model, as a Runner holds it.
        checkpoint (Checkpoint): What :func:`read_checkpoint` returned.
        coverage (float, optional): The share of the model's keys that must be there in their shape, to start
            training from ``load_from``. None: all of them, and no others.

    Returns:
        list[str]: One line for each key that does not fit.

    Raises:
        InputError: No key fits, or fewer than required.
    """
    model, weights = plain_model(model), checkpoint.state_dict
    source = f'checkpoint {checkpoint.path}' + ('' if coverage is None else ' (load_from)')
    # As in mmengine: older files lack the counter of batch norm.
    own = {k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    unfit = [line for line in unfit_keys(model, weights) if not line.endswith('num_batches_tracked')]
    if not set(own) & set(weights):
        if is_released(weights):
            raise InputError(f'{source} {RELEASED}, and give the result')
        raise InputError(
            f'{source} matches no key of the model: it holds {_some(weights)}, the model wants {_some(own)}'
        )
    if coverage is None and unfit:
        raise InputError(f'{source} does not fit the model: {_some(unfit)}')
    fitting = sum(k in weights and weights[k].shape == v.shape for k, v in own.items())
    if coverage is not None and fitting < coverage * len(own):
        raise InputError(
            f'{source} has {fitting} of the {len(own)} keys of the model, fewer than load_coverage='
            f'{coverage:g} requires: {_some(unfit)}; if this is intended, set a lower load_coverage'
        )
    return unfit


def load_weights(model: nn.Module, checkpoint: Checkpoint | str) -> Checkpoint:
    """Load a checkpoint that fits the model in every key. Returns the checkpoint.

    Raises:
        InputError: The file is missing or damaged, would run code, or does not fit.

    Examples:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from mmvisiongru.checkpoint import load_weights
        >>> first, second = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(first.state_dict(), f'{folder}/weights.pth')
        ...     _ = load_weights(second, f'{folder}/weights.pth')
        >>> torch.equal(first.weight, second.weight)
        True
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    check_weights(model, checkpoint)
    plain_model(model).load_state_dict(checkpoint.state_dict, strict=False)
    return checkpoint


def _some(items) -> str:
    items = list(items)
    more = f' and {len(items) - SHOWN_KEYS} more' if len(items) > SHOWN_KEYS else ''
    return ', '.join(items[:SHOWN_KEYS]) + more
