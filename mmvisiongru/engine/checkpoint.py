"""Checkpoints in front of a Runner: safe to read, whole, and fitting the model."""

import os

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmvisiongru.checkpoint import load_checkpoint_file, state_dict_of, unfit_keys
from mmvisiongru.errors import InputError

# A message stays one line on a screen or two, also when every key differs.
SHOWN_KEYS = 4


def refuse_pickled_code() -> None:
    """Let no checkpoint in this process run code, by whatever way it is loaded.

    mmengine retries a file that ``weights_only=True`` refuses without it, and allows ``getattr``, from which
    a file can call any function. Files and http go through our loader from here on; the variable covers
    the schemes that are left.
    """

    # mmengine logs the end of this name as the backend that loads.
    def load_from_mmvisiongru(path, map_location=None):
        return load_checkpoint_file(path, map_location or 'cpu')

    CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_from_mmvisiongru, force=True)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


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
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    # As in mmengine: older files lack the counter of batch norm.
    own = {k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    unfit = [line for line in unfit_keys(model, weights) if not line.endswith('num_batches_tracked')]
    if not set(own) & set(weights):
        raise InputError(
            f'checkpoint {path} matches no key of the model: it holds {_some(weights)}, the model wants '
            f'{_some(own)}; a released VisionGRU file needs tools/model_converters/official_to_mmvisiongru.py'
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


def _some(items) -> str:
    items = list(items)
    more = f' and {len(items) - SHOWN_KEYS} more' if len(items) > SHOWN_KEYS else ''
    return ', '.join(items[:SHOWN_KEYS]) + more
