"""CPU backend: the fused scan of ``csrc/mingru_scan.cpp``, compiled on first use.

Sigmoid, candidate and recurrence of all paths are one pass over memory, parallel over images, paths and
channels on the framework's threads. The source needs a C++ compiler and no headers but the standard ones:
it builds in about three seconds, once per source, compiler, processor and torch version, into the
user's cache. Without a compiler the backend says why it cannot run.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..paths import parse_paths

SOURCE = Path(__file__).parents[1] / 'csrc' / 'mingru_scan.cpp'
FLAGS = ['-O3', '-march=native', '-std=c++17', '-fopenmp', '-fno-math-errno', '-fno-trapping-math']
FLAGS += ['-shared', '-fPIC']
# A thread is worth waking for about this many elements.
GRAIN = 1 << 15
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


def unsupported(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Reasons why the backend cannot run; builds the library on first use."""
    reasons = []
    if device.type != 'cpu':
        reasons.append(f'tensors are on {device.type}')
    if dtype not in DTYPES:
        reasons.append(f'{dtype} is not supported')
    return reasons or [reason for reason in (_library()[1],) if reason]


def _processor() -> str:
    """What '-march=native' depends on: a cache may be shared by machines of different kinds."""
    try:
        lines = Path('/proc/cpuinfo').read_text().split('\n\n')[0].split('\n')
        return ''.join(line for line in lines if line.startswith(('model', 'flags', 'Features', 'CPU')))
    except OSError:
        return platform.processor() + platform.machine()


def _cache_path(compiler: str) -> Path:
    parts = (SOURCE.read_text(), *FLAGS, compiler, _processor(), torch.__version__)
    key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
    root = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return root / 'mmvisiongru' / f'mingru_scan-{key}.so'


def _build(compiler: str, path: Path) -> None:
    """Compile beside ``path`` and move into place, so that processes which race never load half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix='.so', dir=path.parent)
    os.close(handle)
    try:
        subprocess.run(
            [compiler, *FLAGS, str(SOURCE), '-o', partial], check=True, capture_output=True, text=True
        )
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


@cache
def _library():
    """The loaded entry point and '', or None and the reason why there is none (said once, at INFO)."""
    try:
        compiler = next(
            filter(shutil.which, filter(None, (os.environ.get('CXX'), 'g++', 'clang++', 'c++'))), None
        )
        if compiler is None:
            raise OSError('no C++ compiler (g++, clang++ or $CXX) on PATH')
        path = _cache_path(shutil.which(compiler))
        if not path.exists():
            _build(compiler, path)
        function = ctypes.CDLL(str(path)).mingru_scan
        function.restype = None
        return function, ''
    # RuntimeError: there is no home folder.
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, 'stderr', '') or error).strip().split('\n')[0]
        logging.getLogger('mmvisiongru').info(
            "compiled CPU scan is not available, 'torch' is used: %s", reason
        )
        return None, reason


def _call(
    is_backward: bool, tensors: list[Tensor], paths: str, candidate: str, state: Tensor | None = None
) -> None:
    shape, dtype = tensors[0].shape, tensors[0].dtype
    # Nothing to scan, and nothing to divide among the threads.
    if not shape.numel():
        return
    data = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
    strides = (ctypes.c_int64 * (4 * len(tensors)))(*(s for x in tensors for s in x.stride()[:4]))
    column, reverse = (bytes(flags) for flags in zip(*parse_paths(paths), strict=True))
    if state is not None:
        state = state.to(torch.promote_types(dtype, torch.float32)).contiguous()
    _library()[0](
        int(is_backward),
        int(candidate == 'linear'),
        DTYPES[dtype],
        data,
        strides,
        (ctypes.c_int64 * 5)(*shape),
        column,
        reverse,
        None if state is None else ctypes.c_void_p(state.data_ptr()),
        min(torch.get_num_threads(), 1 + tensors[0].numel() // GRAIN),
    )


def forward(
    gate: Tensor, hidden: Tensor, out: Tensor, paths: str, candidate: str, state: Tensor | None = None
) -> None:
    """Scan each path p of gate, hidden (B, H, W, P, D) into ``out``, from ``state`` (B, P, D) or from 0."""
    _call(False, [gate, hidden, out], paths, candidate, state)


def backward(
    grad: Tensor,
    gate: Tensor,
    hidden: Tensor,
    h: Tensor,
    grad_gate: Tensor,
    grad_hidden: Tensor,
    paths: str,
    candidate: str,
) -> None:
    """Write the gradients of :func:`forward` given dL/dh; every tensor is (B, H, W, P, D)."""
    _call(True, [grad, gate, hidden, h, grad_gate, grad_hidden], paths, candidate)
