"""Compiled code of the CPU backends, built on first use.

The sources in ``csrc`` need a C++ compiler and standard headers only. A library takes about three seconds to
build, once per source, compiler, processor and torch version, and is stored in the user's cache folder.
Without a compiler a backend cannot run and says why.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / 'csrc'
FLAGS = ['-O3', '-march=native', '-std=c++17', '-fopenmp', '-fno-math-errno', '-fno-trapping-math']
FLAGS += ['-shared', '-fPIC']
# Elements, the least work that pays for another thread.
GRAIN = 1 << 15
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}

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
    """Number of threads that a number of elements is worth."""
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
    """The library of ``csrc/<name>.cpp`` and '', or None and the reason why there is none (logged once)."""
    try:
        return _load(name), ''
    # RuntimeError: there is no home folder.
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, 'stderr', '') or error).strip().split('\n')[0]
        log.info("compiled %s is not available, 'torch' is used: %s", name, reason)
        return None, reason


@cache
def function(library_name: str, name: str, arguments: tuple):
    """A function of a library; ctypes raises when an argument is missing or of another type."""
    found = getattr(library(library_name)[0], name)
    found.argtypes, found.restype = arguments, None
    return found


def cache_folder() -> Path:
    """The user's cache folder of this package, created if it is missing.

    PermissionError if somebody else may write to it: code is loaded from there.
    """
    root = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    folder = root / 'mmvisiongru'
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if risk := _risk(folder):
        raise PermissionError(f'{folder} {risk}; remove it, or set XDG_CACHE_HOME to a private folder')
    return folder


def _risk(path: Path) -> str:
    """Why somebody else may have written a file or folder, or ''."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return 'is a symbolic link'
    if hasattr(os, 'geteuid') and status.st_uid != os.geteuid():
        return f'belongs to another user (uid {status.st_uid})'
    if hasattr(os, 'geteuid') and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return 'may be written by others'
    return ''


def compiler() -> str:
    """Path of the C++ compiler; OSError if there is none."""
    names = filter(None, (os.environ.get('CXX'), 'g++', 'clang++', 'c++'))
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise OSError('no C++ compiler (g++, clang++ or $CXX) on PATH')
    return found


def _load(name: str) -> ctypes.CDLL:
    command = compiler()
    path = cache_folder() / _file_name(name, command)
    exists = os.path.lexists(path)
    if exists and (reason := _risk(path) or ('' if _is_intact(path) else 'is damaged')):
        log.warning('%s %s and is built again', path, reason)
        exists = False
    if not exists:
        _build(name, command, path)
    return ctypes.CDLL(str(path))


def _is_intact(path: Path) -> bool:
    """Whether a library ends with its own checksum; loading half of one may kill the process."""
    data = path.read_bytes()
    return hashlib.sha256(data[:-32]).digest() == data[-32:]


def _file_name(name: str, compiler: str) -> str:
    files = (SOURCES / f'{name}.cpp', *sorted(SOURCES.glob('*.h')))
    parts = (*(f.read_text('utf-8') for f in files), *FLAGS, compiler, _processor(), torch.__version__)
    return f'{name}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.so'


def _processor() -> str:
    """Processor model and flags, on which '-march=native' depends: machines may share a cache."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').split('\n\n')[0].split('\n')
        return ''.join(line for line in lines if line.startswith(('model', 'flags', 'Features', 'CPU')))
    except OSError:
        return platform.processor() + platform.machine()


def _build(name: str, compiler: str, path: Path) -> None:
    """Compile beside ``path`` and replace it: concurrent processes never see half a file, or none."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        command = [compiler, *FLAGS, str(SOURCES / f'{name}.cpp'), '-o', str(partial)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        data = partial.read_bytes()
        partial.write_bytes(data + hashlib.sha256(data).digest())
        partial.chmod(0o700)
        os.replace(partial, path)
