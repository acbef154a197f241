"""Reading checkpoints without running what is in them."""

import os
import pickle
import re
from logging import WARNING

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from mmvisiongru.errors import InputError
from mmvisiongru.storage import check_whole


def _statistic(owner, name: str):
    """Look up a statistic of HistoryBuffer, which pickle stores as a call of ``getattr``.

    The real ``getattr`` must not be on the list: from it and ``HistoryBuffer.__setstate__`` a file can put
    together a call of any function.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r})')
    return getattr(owner, name)


_statistic.__module__, _statistic.__name__, _statistic.__qualname__ = 'builtins', 'getattr', 'getattr'


def _under(module: str, function):
    """The function under the name of ``module``, where another version of its library has it."""

    def call(*args):
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, function.__name__, function.__name__
    return call


# numpy 1 and 2 write arrays and scalars as calls of the same two functions in different modules.
_NUMPY = [
    _under(module, function)
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
    for function in (np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0])
]


def _safe_globals() -> list:
    """What a checkpoint of mmengine holds besides tensors: its log buffers and their numpy arrays."""
    dtypes = {type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64, np.uint32, np.bool_)}
    wanted = [HistoryBuffer, _statistic, np.ndarray, np.dtype, *_NUMPY, *dtypes]
    # Leaving the context takes off the list all that it names, what the user had put there as well.
    return [x for x in wanted if x not in torch.serialization.get_safe_globals()]


def load_checkpoint_file(path: str, map_location='cpu') -> dict:
    """Read a checkpoint, a file or an http(s) address, as data only; nothing in it is executed.

    That is torch's ``weights_only=True``, which torch 2.5 does not keep in every case (CVE-2025-32434).

    Raises:
        InputError: There is no such file, it is no checkpoint, is damaged, or holds more than weights and
            plain data.
    """
    path = os.path.expanduser(path)
    if '://' in path and not path.startswith(('http://', 'https://')):
        raise InputError(f'checkpoint {path}: only files and http(s) addresses are read; download it first')
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            if '://' in path:
                return torch.hub.load_state_dict_from_url(path, map_location=map_location, weights_only=True)
            check_whole(path)
            return torch.load(path, map_location=map_location, weights_only=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f'checkpoint {path} does not exist') from None
    # A damaged file fails in many ways: besides unpickling and zip errors, as KeyError, EOFError, OSError.
    except Exception as error:
        code = re.search(r'GLOBAL (.*?)(?: was not an| whose module|$)', str(error), re.MULTILINE)
        if isinstance(error, pickle.UnpicklingError) and code:
            reason = (
                f'asks for {code[1]}, which is no data and could run code; it was not loaded; to trust it, '
                'call torch.serialization.add_safe_globals first, for a config in a module of custom_imports'
            )
        else:
            lines = [line.strip() for line in str(error).split('WeightsUnpickler error:')[-1].splitlines()]
            detail = ': '.join([type(error).__name__, *filter(None, lines)][:2])
            reason = f'is not a readable checkpoint ({detail})'
        raise InputError(f'checkpoint {path} {reason}') from error


def state_dict_of(checkpoint, prefix: str | None = None) -> dict[str, Tensor]:
    """The weights in a loaded checkpoint, those under ``prefix`` if one is given, without it.

    As mmengine loads them: without a prefix, the ``module.`` of a wrapped model is taken off. What holds no
    weights gives none.
    """
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
    state = {k: v for k, v in state.items() if torch.is_tensor(v)} if isinstance(state, dict) else {}
    if not prefix:
        return {k.removeprefix('module.'): v for k, v in state.items()}
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
        InputError: No parameter of the module is in the file. A partial match is logged, key by key.
    """
    cfgs = module.init_cfg if isinstance(module.init_cfg, (list, tuple)) else [module.init_cfg or {}]
    for cfg in cfgs:
        if cfg.get('type') not in ('Pretrained', PretrainedInit):
            continue
        path, prefix = cfg['checkpoint'], cfg.get('prefix')
        state = state_dict_of(load_checkpoint_file(path), prefix)
        unfit, own = unfit_keys(module, state), module.state_dict()
        fitting = sum(k in state and state[k].shape == v.shape for k, v in own.items())
        if not fitting:
            raise InputError(
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
