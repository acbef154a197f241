"""Check of a Triton backend on its first use on a GPU: a small call is compared with 'torch'."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from subprocess import CalledProcessError
from types import ModuleType

import torch

from .native import cache_folder

BOUND = 2e-5  # largest float32 error over largest value, ten times the tolerance of the tests

log = logging.getLogger('mmvisiongru')


@cache
def problem(operator: str, module: ModuleType, example: Callable, device: torch.device) -> str:
    """Why 'auto' must not take a Triton backend on a device, logged once per process, or ''.

    A right result is remembered in the cache folder by GPU, versions of torch and Triton, and kernel sources.
    ``example(backend, device)`` returns outputs and gradients of a small call.
    """
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
    folders = Path(module.__file__).parent, Path(__file__).parent
    sources = [file.read_bytes() for f in folders for file in sorted(f.glob('triton_*.py'))]
    key = b''.join(sources) + f'{name} {torch.__version__} {version("triton")}'.encode()
    record = None
    # OSError, or RuntimeError where there is no home folder: the check runs in each process.
    with suppress(OSError, RuntimeError):
        record = cache_folder() / f'{operator}-checked-{hashlib.sha256(key).hexdigest()[:16]}'
        if record.exists():
            return ''
    found = _compare(example, device)
    if found:
        log.warning("%s on %s: backend 'triton' %s, 'torch' is used", operator, name, found)
    elif record:
        with suppress(OSError):
            record.touch()
    return found


def _compare(example: Callable, device: torch.device) -> str:
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            pairs = zip(example('triton', device), example('torch', device), strict=True)
            errors = [((got - ref).abs().max() / ref.abs().max()).item() for got, ref in pairs]
    except CalledProcessError as failure:
        # Triton compiles its launcher in C, against Python.h and libcuda.
        return f'fails ({failure.cmd[0]} cannot build its launcher; the headers are in python3-dev)'
    # Whatever fails, 'torch' can run.
    except Exception as failure:
        return f'fails ({type(failure).__name__}: {" ".join(str(failure).split())[:200]})'
    # Not by max(), which may skip NaN.
    wrong = [error for error in errors if not error <= BOUND]
    return f"differs from 'torch' by {wrong[0]:.1e} of the largest value" if wrong else ''
