"""Compiled code of the CPU backends, built on first use.

The sources in ``csrc`` need a C++ compiler and no headers but their own and the standard ones: one builds in
about three seconds, once per source, compiler, processor and torch version, into the user's cache. Without a
compiler a backend says why it cannot run.
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

SOURCES = Path(__file__).parent / 'csrc'
FLAGS = ['-O3', '-march=native', '-std=c++17', '-fopenmp', '-fno-math-errno', '-fno-trapping-math']
FLAGS += ['-shared', '-fPIC']
# A thread is worth waking for about this many elements.
GRAIN = 1 << 15
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_DIGEST = 64  # hexadecimal digits of SHA-256 after the library, which a loader does not read

log = logging.getLogger('mmvisiongru')


class Shape(ctypes.Structure):
    """``struct Shape`` of csrc/map.h: sizes of the maps (B, H, W, P, D)."""

    _fields_ = [(name, ctypes.c_int64) for name in 'BHWPD']


class Map(ctypes.Structure):
    """``struct Map`` of csrc/map.h: a map (B, H, W, P, D) whose channels are contiguous."""

    _fields_ = [('data', ctypes.c_void_p)] + [(name, ctypes.c_int64) for name in 'bhwp']

    @classmethod
    def of(cls, x: Tensor) -> 'Map':
        """Address and element strides of a tensor."""
        return cls(x.data_ptr(), *x.stride()[:4])


def threads(elements: int) -> int:
    """Threads that are worth waking."""
    return min(torch.get_num_threads(), 1 + elements // GRAIN)


def unsupported(name: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Reasons why the library ``name`` cannot serve such tensors; builds it on first use."""
    reasons = []
    if device.type != 'cpu':
        reasons.append(f'tensors are on {device.type}')
    if dtype not in DTYPES:
        reasons.append(f'{dtype} is not supported')
    return reasons or [reason for reason in (library(name)[1],) if reason]


@cache
def library(name: str) -> tuple[ctypes.CDLL | None, str]:
    """The library of ``csrc/<name>.cpp`` and '', or None and the reason why there is none (said once)."""
    try:
        return _load(name), ''
    # RuntimeError: there is no home folder.
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, 'stderr', '') or error).strip().split('\n')[0]
        log.info("compiled %s is not available, 'torch' is used: %s", name, reason)
        return None, reason


def passes(name: str, prefix: str, **argtypes: list) -> dict:
    """Functions ``<prefix>_<pass>`` of a library by their pass.

    ctypes refuses a call with arguments missing or of another type.
    """
    functions = {}
    for key, types in argtypes.items():
        functions[key] = getattr(library(name)[0], f'{prefix}_{key}')
        functions[key].argtypes, functions[key].restype = types, None
    return functions


def _load(name: str) -> ctypes.CDLL:
    compilers = filter(None, (os.environ.get('CXX'), 'g++', 'clang++', 'c++'))
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise OSError('no C++ compiler (g++, clang++ or $CXX) on PATH')
    path = _cache_path(name, compiler)
    # Other processes do the same at the same time: a file is replaced, never taken away.
    if not path.exists():
        _build(name, compiler, path)
    elif not _is_whole(path):
        log.warning('%s is damaged and is built again', path)
        _build(name, compiler, path)
    return ctypes.CDLL(str(path))


def _is_whole(path: Path) -> bool:
    """Whether a library ends with its own checksum; loading half of one may end the process."""
    data = path.read_bytes()
    return hashlib.sha256(data[:-_DIGEST]).hexdigest().encode() == data[-_DIGEST:]


def _cache_path(name: str, compiler: str) -> Path:
    texts = [file.read_text() for file in (SOURCES / f'{name}.cpp', *sorted(SOURCES.glob('*.h')))]
    parts = (*texts, *FLAGS, compiler, _processor(), torch.__version__)
    key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
    root = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return root / 'mmvisiongru' / f'{name}-{key}.so'


def _processor() -> str:
    """What '-march=native' depends on: a cache may be shared by machines of different kinds."""
    try:
        lines = Path('/proc/cpuinfo').read_text().split('\n\n')[0].split('\n')
        return ''.join(line for line in lines if line.startswith(('model', 'flags', 'Features', 'CPU')))
    except OSError:
        return platform.processor() + platform.machine()


def _build(name: str, compiler: str, path: Path) -> None:
    """Compile beside ``path`` and move into place, so that processes which race never load half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix='.so', dir=path.parent)
    os.close(handle)
    try:
        command = [compiler, *FLAGS, str(SOURCES / f'{name}.cpp'), '-o', partial]
        subprocess.run(command, check=True, capture_output=True, text=True)
        digest = hashlib.sha256(Path(partial).read_bytes()).hexdigest()
        with open(partial, 'a') as file:
            file.write(digest)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
