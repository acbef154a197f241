"""Read checkpoints completely, once, and as data only."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_http, load_from_local
from torch import Tensor

from mmvisiongru._compat import checkpoint_loaders
from mmvisiongru.errors import InputError, did_you_mean

from .published import SCHEME, check_hash, find_published, published_weights


class Checkpoint(NamedTuple):
    """A checkpoint in memory: where it was read, and what the file holds."""

    path: str
    content: dict

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights, without the ``module.`` of a wrapped model."""
        return state_dict_of(self.content)

    @property
    def meta(self) -> dict:
        """Iteration, epoch, classes and the like; empty if the file holds weights only."""
        meta = self.content.get('meta')
        return meta if isinstance(meta, dict) else {}

    @property
    def resumable(self) -> bool:
        """Whether it holds the state of a training run; that of the best weights has no optimizer."""
        return {'meta', 'message_hub', 'optimizer'} <= set(self.content)


def read_checkpoint(path: str, resume: bool = False) -> Checkpoint:
    """Read a checkpoint from a file or an address that mmengine can load.

    Raises:
        InputError: The file is missing, damaged, would run code, or holds no weights; with ``resume``, it
            holds no state of a training run.
    """
    with data_only():
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    checkpoint = Checkpoint(path, content)
    if not checkpoint.state_dict:
        raise InputError(f'checkpoint {path} holds no weights')
    if wrong := [key for key in content.get('state_dict', content) if not isinstance(key, str)]:
        raise InputError(f'checkpoint {path} has a weight named {wrong[0]!r}; names must be strings')
    if resume and not checkpoint.resumable:
        raise InputError(
            f'checkpoint {path} holds weights but no training state to resume; '
            f'to start from its weights: --cfg-options load_from={path}'
        )
    return checkpoint


def state_dict_of(content, prefix: str | None = None) -> dict[str, Tensor]:
    """Get the weights in a loaded checkpoint, if any: those under ``prefix``, if one is given, without it.

    Without a prefix, the ``module.`` of a wrapped model is removed, as in mmengine. What a module
    returned from ``get_extra_state()``, which need not be a tensor, is among them.
    """
    state = content.get('state_dict', content) if isinstance(content, dict) else {}
    state = state if isinstance(state, dict) else {}
    prefix = prefix.rstrip('.') + '.' if prefix else ''
    named = {k: v for k, v in state.items() if isinstance(k, str) and k.startswith(prefix)}
    return {
        key.removeprefix(prefix or 'module.'): value
        for key, value in named.items()
        if torch.is_tensor(value) or key.endswith('_extra_state')
    }


def load_checkpoint_file(path: str, map_location='cpu') -> dict:
    """Read a checkpoint as data only; nothing in it is executed.

    That is torch's ``weights_only=True``, which torch 2.5 does not keep in every case (CVE-2025-32434).
    ``path`` is a file, an http(s) address, the name of published weights, or that as ``mmvisiongru://NAME``.

    Raises:
        InputError: The file is missing, damaged, no checkpoint, or holds more than weights and plain data.
    """
    options = dict(map_location=map_location, weights_only=True)
    published = find_published(path)
    path = str(published or os.path.expanduser(path))
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            if re.match('https?://', path):
                content = torch.hub.load_state_dict_from_url(path, **options)
            else:
                check_file(path)
                _check_integrity(path)
                content = torch.load(path, **options)
        if published:
            check_hash(published, content)
        return content
    except InputError:
        raise
    # A damaged file fails in many ways: besides unpickling and zip errors, as KeyError, EOFError, OSError.
    except Exception as error:
        raise InputError(f'checkpoint {path} {_reason(error)}') from error


# Loaders by the beginning of an address: mmengine's for files and http(s), ours for published weights.
LOADERS = {'': load_from_local, 'http://': load_from_http, 'https://': load_from_http}
LOADERS[SCHEME] = load_checkpoint_file


def check_file(path: str) -> None:
    """Refuse a path that is neither a file, nor an address, nor the name of published weights."""
    if not find_published(path) and '://' not in path and not os.path.isfile(os.path.expanduser(path)):
        near = did_you_mean(path, published_weights())
        is_folder = os.path.isdir(os.path.expanduser(path))
        raise InputError(f'checkpoint {path} {"is a folder" if is_folder else f"does not exist{near}"}')


def _check_integrity(path: str) -> None:
    """Compare each record of the file with its CRC-32, which torch writes and does not check."""
    with open(path, 'rb') as file:
        # Files older than torch's ZIP format have no checksums.
        if not file.read(2).startswith(b'PK'):
            return
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise InputError(f'checkpoint {path} is damaged: checksum mismatch in {broken}')


def _reason(error: Exception) -> str:
    code = re.search(r'GLOBAL (.*?)(?: was not an| whose module|$)', str(error), re.MULTILINE)
    if isinstance(error, pickle.UnpicklingError) and code:
        return (
            f'asks for {code[1]}, which is no data and could run code; it was not loaded; to trust it, '
            'call torch.serialization.add_safe_globals first, for a config in a module of custom_imports'
        )
    lines = [line.strip() for line in str(error).split('WeightsUnpickler error:')[-1].splitlines()]
    return f'is not a readable checkpoint ({": ".join([type(error).__name__, *filter(None, lines)][:2])})'


def _safe_globals() -> list:
    """List what a checkpoint of mmengine holds besides tensors: log buffers and numpy arrays."""
    wanted = [HistoryBuffer, _alias('builtins', 'getattr', _statistic), np.ndarray, np.dtype]
    # numpy 1 and 2 write arrays and scalars as calls of the same two functions in different modules.
    for function in (np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]):
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            wanted.append(_alias(module, function.__name__, function))
    wanted += {type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64, np.uint32, np.bool_)}
    # safe_globals() removes every entry on exit, also one that the user had registered.
    return [x for x in wanted if x not in torch.serialization.get_safe_globals()]


def _statistic(owner, name: str):
    """Take the place of ``getattr``, as which pickle stores the statistics of a HistoryBuffer.

    From the real one and ``HistoryBuffer.__setstate__`` a file can put together a call of any function.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def _alias(module: str, name: str, function: Callable) -> Callable:
    """Give a function the name under which files ask for it; torch 2.5 takes no pair of both."""

    def call(*args):
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


@contextmanager
def data_only(*known: Checkpoint) -> Iterator[None]:
    """Within the context, mmengine reads files and http(s) addresses as data only, and ``known`` not again.

    mmengine retries a file that ``weights_only=True`` refuses without it, and allows ``getattr``, from which
    a file can call any function. Other addresses, such as ``s3://``, are read as mmengine reads them.
    """
    registered = checkpoint_loaders(CheckpointLoader)
    before = {prefix: registered.get(prefix, loader) for prefix, loader in LOADERS.items()}
    # A backbone may load its weights inside of a Runner that has read its own file already.
    outer = getattr(registered.get(''), 'known', {})
    _register_own(outer | {checkpoint.path: checkpoint.content for checkpoint in known})
    try:
        yield
    finally:
        for prefix, loader in before.items():
            CheckpointLoader.register_scheme(prefix, loader, force=True)


def refuse_pickled_code() -> None:
    """Let no checkpoint in this process run code, by whatever way it is loaded. For programs, not libraries.

    The environment variable covers the addresses that mmengine and torch open by themselves.
    """
    _register_own({})
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def _register_own(known: dict[str, dict]) -> None:
    # mmengine logs 'Loads checkpoint by mmvisiongru backend': the end of this name.
    def load_from_mmvisiongru(path, map_location=None):
        return known[path] if path in known else load_checkpoint_file(path, map_location or 'cpu')

    load_from_mmvisiongru.known = known
    registered = checkpoint_loaders(CheckpointLoader)
    for prefix, loader in LOADERS.items():
        # A loader that somebody else registered is trusted.
        if registered.get(prefix, loader) == loader or hasattr(registered[prefix], 'known'):
            CheckpointLoader.register_scheme(prefix, load_from_mmvisiongru, force=True)
