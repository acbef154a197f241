"""Reading checkpoints without running what is in them."""

import os
import pickle
import re

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_http, load_from_local

from mmvisiongru.errors import InputError

from .seal import check_whole


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


def refuse_code_in(path: str) -> None:
    """Raise InputError if mmengine, which is about to load this checkpoint, would run code that is in it.

    Nothing outside this call changes, unlike with :func:`refuse_pickled_code`. What comes from a storage
    service or a model zoo is not looked at.
    """
    if CheckpointLoader._get_checkpoint_loader(path) in (load_from_local, load_from_http):
        load_checkpoint_file(path)


def refuse_pickled_code() -> None:
    """Let no checkpoint in this process run code, by whatever way it is loaded. For programs, not libraries.

    mmengine retries a file that ``weights_only=True`` refuses without it, and allows ``getattr``, from which
    a file can call any function. Files and http go through our loader from here on; the variable covers
    the schemes that are left.
    """

    # mmengine logs the end of this name as the backend that loads.
    def load_from_mmvisiongru(path, map_location=None):
        return load_checkpoint_file(path, map_location or 'cpu')

    CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_from_mmvisiongru, force=True)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
