"""Files that are either complete or absent, and folders that only one process writes."""

import errno
import fcntl
import os
import os.path as osp
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmvisiongru.errors import InputError

PACKAGE = Path(__file__).resolve().parent
# Ends the names of files being written, after the process that writes them.
UNFINISHED = '.unfinished'


def shipped(name: str) -> Path | None:
    """A folder that comes with the package, or lies beside it in a clone; None if there is none."""
    folder = next(filter(Path.is_dir, (PACKAGE / '.mim' / name, PACKAGE.parent / name)), None)
    return folder and folder.resolve()


@contextmanager
def new_file(path: str, durable: bool = True) -> Iterator[str]:
    """Give a name beside ``path`` to write to; what is there at the end replaces ``path`` in one step.

    ``durable`` waits until it would outlive a loss of power.

    Raises:
        InputError: The disk is full or the folder cannot be written. ``path`` is as it was before, and
            nothing else is left.
    """
    folder, name = osp.split(path)
    unfinished = osp.join(folder, f'.{name}.{os.getpid()}{UNFINISHED}')
    try:
        yield unfinished
        if durable:
            _sync(unfinished)
        os.replace(unfinished, path)
        if durable:
            # A rename lasts once its folder is synced.
            _sync(folder or '.')
    except BaseException as error:
        with suppress(OSError):
            os.remove(unfinished)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise InputError(f'{path} could not be written: {reason}; what was there is kept') from error
        raise


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str, text: str) -> None:
    """Write a small file in one step, and make its folder."""
    with new_file(path) as unfinished:
        os.makedirs(osp.dirname(path) or '.', exist_ok=True)
        Path(unfinished).write_text(text, encoding='utf-8')


def lock_folder(folder: str) -> int | None:
    """Keep other processes from locking a folder until this process closes the returned descriptor or ends.

    Checkpoints that a killed process was writing are deleted. None where the file system has no locks. If
    another process holds the lock, InputError names it.
    """
    path = osp.join(folder, '.lock')
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror}; set --work-dir') from error
    try:
        # A POSIX lock: one of flock() would be inherited by dataloader workers, which outlive a killed run.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(lock, 1000).decode(errors='replace') or 'another process'
        os.close(lock)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None
        raise InputError(f'{folder} is in use by {owner}; wait until it ends, or set --work-dir') from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f'process {os.getpid()} on {socket.gethostname()}'.encode(), 0)
    for name in os.listdir(folder):
        found = re.fullmatch(rf'\..*\.pth\.(\d+){UNFINISHED}', name)
        if found and not _is_running(int(found[1])):
            with suppress(OSError):
                os.remove(osp.join(folder, name))
    return lock


def _is_running(process: int) -> bool:
    """Whether another process of this machine has this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # In containers numbers repeat: a process with our number is a killed one of another container.
    return process != os.getpid()


def is_local(path: str, backend_args: dict | None = None) -> bool:
    """Whether mmengine's file backend for a path, named or told by the path, is the one for local files."""
    name = (backend_args or {}).get('backend')
    return name in ('local', 'disk') if name else '://' not in path


def check_folder(folder: str) -> None:
    """Make a folder, and raise InputError unless a file can be written to it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b'x')
    except OSError as error:
        raise InputError(f'folder {folder} cannot be written: {error.strerror}') from error
