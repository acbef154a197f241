"""Files that are either whole or not there.

A checkpoint is a ZIP archive. :func:`seal` ends it with an archive comment that holds the iteration and the
SHA-256 of everything before it, so that one file carries its own proof: it can be moved and renamed, torch
and unzip read it as before, and any flipped, missing or added byte is found.
"""

import hashlib
import os
import os.path as osp
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mmvisiongru.errors import InputError

# Ends the names of files being written; whoever finds one may remove it.
UNFINISHED = '.unfinished'
_END_OF_ARCHIVE, _END_SIZE = b'PK\x05\x06', 22
_SEAL = re.compile(rb'iter=(\d{1,12}) sha256=([0-9a-f]{64})')
_DIGITS = 64


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
    with new_file(path) as unfinished, open(unfinished, 'w') as file:
        file.write(text)


def remove_unfinished(folder: str) -> None:
    """Remove what a killed process was writing."""
    for name in os.listdir(folder) if osp.isdir(folder) else []:
        if name.startswith('.') and name.endswith(UNFINISHED):
            with suppress(OSError):
                os.remove(osp.join(folder, name))


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


def seal(path: str, iteration: int) -> None:
    """End a file of ``torch.save`` with the iteration and the checksum."""
    with open(path, 'r+b') as file:
        file.seek(-_END_SIZE, os.SEEK_END)
        if not file.read().startswith(_END_OF_ARCHIVE):
            raise ValueError(f'{path} does not end as an archive without a comment')
        head = b'iter=%d sha256=' % iteration
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack('<H', len(head) + _DIGITS) + head)
        file.write(_digest(file, file.tell()))


def _digest(file, size: int) -> bytes:
    """SHA-256 of the first ``size`` bytes, in hexadecimal; the file is at ``size`` afterwards."""
    file.seek(0)
    digest = hashlib.sha256()
    while size:
        block = file.read(min(size, 1 << 20))
        if not block:
            break
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def read_seal(path: str) -> tuple[int, bytes] | None:
    """Iteration and checksum at the end of a file, None if it is not sealed.

    Raises:
        InputError: What is there is no seal of ours.
    """
    with open(path, 'rb') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 256))
        tail = file.read()
    at = tail.rfind(_END_OF_ARCHIVE)
    # The last field of the archive's end is the length of the comment.
    length, comment = tail[at + _END_SIZE - 2 : at + _END_SIZE], tail[at + _END_SIZE :]
    if at < 0 or (not comment and length == bytes(2)):
        return None
    found = _SEAL.fullmatch(comment)
    if not found or length != struct.pack('<H', len(comment)):
        raise InputError(f'checkpoint {path} is not a readable checkpoint: it ends without its checksum')
    return int(found[1]), found[2]


def check_whole(path: str) -> None:
    """Compare a checkpoint with its checksum, or with those that ZIP keeps of each tensor.

    Raises:
        InputError: The file is damaged. Files older than torch's ZIP format are not checked.
    """
    sealed = read_seal(path)
    if sealed:
        with open(path, 'rb') as file:
            size = file.seek(0, os.SEEK_END)
            if _digest(file, size - _DIGITS) != sealed[1]:
                raise InputError(f'checkpoint {path} is damaged: its bytes do not fit its checksum')
        return
    with open(path, 'rb') as file:
        if not file.read(4).startswith(b'PK'):
            return
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:
        raise InputError(
            f'checkpoint {path} is not a readable checkpoint, cut short or damaged ({error})'
        ) from error
    if broken:
        raise InputError(f'checkpoint {path} is damaged: {broken} does not fit its checksum')


def find_checkpoint(work_dir: str) -> tuple[str | None, list[str]]:
    """The whole checkpoint of the most iterations from which a run can be resumed.

    ``last_checkpoint`` is only a hint of where to look: it may be missing, empty, older than the newest file,
    or name the folder before it was moved.

    Returns:
        tuple[str | None, list[str]]: Its path, and what to log: damaged files that were passed over.
    """
    last = _last_checkpoint(work_dir)
    folders = [work_dir]
    if last and not osp.exists(osp.join(work_dir, osp.basename(last))):
        folders.append(osp.dirname(last))
    paths = [osp.join(f, name) for f in folders if osp.isdir(f) for name in sorted(os.listdir(f))]
    notes, found = [], []
    for path in paths:
        name = osp.basename(path)
        # What is best need not be where the run was.
        if not name.endswith('.pth') or name.startswith(('.', 'best_')) or not osp.isfile(path):
            continue
        try:
            found.append((_iteration(path), osp.getmtime(path), path))
        except InputError as error:
            notes.append(f'passed over: {error}')
    for iteration, _, path in sorted(found, reverse=True):
        if iteration < 0:
            continue
        try:
            check_whole(path)
        except InputError as error:
            notes.append(f'passed over: {error}')
            continue
        if not last or osp.basename(last) != osp.basename(path):
            notes.append(f'last_checkpoint of {work_dir} names {last or "nothing"}; going on from {path}')
        return path, notes
    return None, notes


def _last_checkpoint(work_dir: str) -> str:
    try:
        with open(osp.join(work_dir, 'last_checkpoint')) as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ''


def _iteration(path: str) -> int:
    """Iterations that a checkpoint is from, -1 if it holds no state of a run."""
    if sealed := read_seal(path):
        return sealed[0]
    # Not at the top: that module checks files with this one.
    from mmvisiongru.checkpoint import load_checkpoint_file

    checkpoint = load_checkpoint_file(path)
    resumable = isinstance(checkpoint, dict) and {'meta', 'message_hub', 'optimizer'} <= set(checkpoint)
    return checkpoint['meta'].get('iter', -1) if resumable else -1
