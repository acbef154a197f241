"""Check of a Triton backend on its first use on a GPU: a small call is compared with 'torch'."""

import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from .native import cache_folder
from .triton_launch import triton_version

BOUND = 2e-5  # largest float32 error over largest value, ten times the tolerance of the tests

log = logging.getLogger('mmvisiongru')


@cache
def problem(operator: str, module: ModuleType, example: Callable, device: torch.device) -> str:
    """Why 'auto' must not take a Triton backend on a device, logged once per process, or ''.

    The result is remembered in the cache folder by GPU, versions of torch and Triton, and kernel sources.
    ``example(backend, device)`` returns outputs and gradients of a small call.
    """
    try:
        record = cache_folder() / f'{operator.replace(" ", "-")}-{_key(module, device)}.txt'
        if record.exists():
            found = record.read_text(encoding='utf-8')
        else:
            found = _compare(example, device)
            partial = record.with_suffix(f'.{os.getpid()}')
            partial.write_text(found, encoding='utf-8')
            os.replace(partial, record)
    # RuntimeError: there is no home folder.
    except (OSError, RuntimeError):
        found = _compare(example, device)
    if found:
        log.warning("%s on %s: backend 'triton' %s, 'torch' is used", operator, _name(device), found)
    return found


def _compare(example: Callable, device: torch.device) -> str:
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            pairs = zip(example('triton', device), example('torch', device), strict=True)
            error = max(((got - ref).abs().max() / ref.abs().max()).item() for got, ref in pairs)
    # Whatever fails, 'torch' can run.
    except Exception as failure:
        return f'fails ({type(failure).__name__}: {" ".join(str(failure).split())[:200]})'
    return '' if error <= BOUND else f"differs from 'torch' by {error:.1e} of the largest value"


def _key(module: ModuleType, device: torch.device) -> str:
    folders = Path(module.__file__).parent, Path(__file__).parent
    sources = [file.read_bytes() for f in folders for file in sorted(f.glob('triton_*.py'))]
    parts = (_name(device), torch.__version__, str(triton_version()))
    return hashlib.sha256(b''.join(sources) + '\n'.join(parts).encode()).hexdigest()[:16]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
