"""Reading checkpoints without running what is in them."""

import pickle
from logging import WARNING

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from torch import nn


def _safe_globals() -> list:
    """What a checkpoint of mmengine holds besides tensors: its log buffers and their numpy arrays."""
    dtypes = {type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64, np.uint32, np.bool_)}
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    return [HistoryBuffer, np.ndarray, np.dtype, reconstruct, scalar, *dtypes]


def load_checkpoint_file(path: str) -> dict:
    """Read a checkpoint onto the CPU as data only; nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint, is damaged, or holds more than weights and plain data.
    """
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            if '://' in str(path):
                return torch.hub.load_state_dict_from_url(str(path), map_location='cpu', weights_only=True)
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split('\n')[0]
        raise ValueError(f'{path}: not loaded, the file is damaged or asks to run code ({reason})') from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'{path}: not a readable checkpoint ({str(error).splitlines()[0]})') from error


def state_dict_of(checkpoint: dict, prefix: str | None = None) -> dict:
    """The weights in a loaded checkpoint, those under ``prefix`` if one is given, without it."""
    state = checkpoint.get('state_dict', checkpoint)
    if not prefix:
        return state
    prefix = prefix.rstrip('.') + '.'
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def unfit_keys(module: nn.Module, state: dict) -> list[str]:
    """One line for each parameter or buffer that ``state`` lacks, holds in another shape, or has too many."""
    own = module.state_dict()
    lines = [f'missing {k}' for k in own if k not in state]
    lines += [
        f'shape of {k}: {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the model'
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    return lines + [f'unexpected {k}' for k in state if k not in own]


def check_pretrained(module: nn.Module) -> None:
    """Check the checkpoint that a module's ``init_cfg=dict(type='Pretrained')`` names before it is loaded.

    Raises:
        ValueError: No parameter of the module is in the file. A partial match is logged, key by key.
    """
    cfgs = module.init_cfg if isinstance(module.init_cfg, (list, tuple)) else [module.init_cfg or {}]
    for cfg in cfgs:
        if cfg.get('type') != 'Pretrained':
            continue
        path, prefix = cfg['checkpoint'], cfg.get('prefix')
        state = state_dict_of(load_checkpoint_file(path), prefix)
        unfit, own = unfit_keys(module, state), module.state_dict()
        fitting = sum(k in state and state[k].shape == v.shape for k, v in own.items())
        if not fitting:
            raise ValueError(
                f'{path}: none of the {len(own)} parameters of {type(module).__name__} is in the '
                f'{len(state)} keys under prefix {prefix!r}; {"; ".join(unfit[:3])}'
            )
        if unfit:
            print_log(
                f'{path}: {fitting} of {len(own)} parameters of {type(module).__name__} loaded; not '
                'used:\n  ' + '\n  '.join(unfit),
                logger='current',
                level=WARNING,
            )
