"""Files that are either whole or not there."""

import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mmvisiongru.errors import InputError

# Ends the names of files being written.
UNFINISHED = '.unfinished'


@contextmanager
def new_file(path: str) -> Iterator[str]:
    """Give a name beside ``path`` to write to; what is there at the end replaces ``path`` in one step.

    Raises:
        InputError: The disk is full or the folder cannot be written. ``path`` is as it was before, and
            nothing else is left.
    """
    folder, name = osp.split(path)
    unfinished = osp.join(folder, f'.{name}{UNFINISHED}')
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
        # The rename itself must outlive a loss of power.
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
    """Write a small file in one step."""
    with new_file(path) as unfinished, open(unfinished, 'w', encoding='utf-8') as file:
        file.write(text)


def remove_unfinished(folder: str, kind: str) -> None:
    """Remove what a killed process was writing.

    Args:
        folder (str): Where it wrote.
        kind (str): How the names of its files end: those of others may be under way at this moment.
    """
    for name in os.listdir(folder) if osp.isdir(folder) else []:
        if name.startswith('.') and name.endswith(f'{kind}{UNFINISHED}'):
            with suppress(OSError):
                os.remove(osp.join(folder, name))


def is_local(path: str, backend_args: dict | None = None) -> bool:
    """Whether mmengine's file backend for a path, named or told by the path, is the one for local files."""
    name = (backend_args or {}).get('backend')
    return name in ('local', 'disk') if name else '://' not in path


def check_folder(folder: str) -> None:
    """Make a folder, and raise InputError unless a file can be written to it."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f'folder {folder} cannot be made: {error.strerror}') from error
    probe = osp.join(folder, f'write-test-{os.getpid()}')
    write_text(probe, 'x')
    with suppress(FileNotFoundError):
        os.remove(probe)
