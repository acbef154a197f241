"""Checkpoints that carry their own proof.

A checkpoint is a ZIP archive. :func:`seal` ends it with an archive comment that holds the iteration and the
SHA-256 of everything before it: the file can be moved and renamed, torch and unzip read it as before, and
any flipped, missing or added byte is found.
"""

import hashlib
import os
import re
import struct
import zipfile

from mmvisiongru.errors import InputError

_END_OF_ARCHIVE, _END_SIZE = b'PK\x05\x06', 22
_SEAL = re.compile(rb'iter=(\d{1,12}) sha256=([0-9a-f]{64})')
_DIGITS = 64


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
