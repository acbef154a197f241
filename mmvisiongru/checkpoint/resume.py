"""Find the checkpoint from which an interrupted run continues."""

import os
import os.path as osp
import re
from contextlib import suppress
from pathlib import Path

from mmvisiongru.errors import InputError

from .load import Checkpoint, read_checkpoint


def find_checkpoint(work_dir: str) -> tuple[Checkpoint | None, list[str]]:
    """Read the latest complete checkpoint from which a run can be resumed.

    That is the one that ``last_checkpoint`` names, unless a later one was written after ``last_checkpoint``,
    as in a run that was killed in between. Otherwise the time of the files decides: one with more iterations
    that is older belongs to another run, or to a continuation that was given up. A storage service cannot be
    searched; there, ``last_checkpoint`` decides. Returns the checkpoint and what to log about the choice.
    """
    last, notes = '', []
    with suppress(OSError, UnicodeDecodeError):
        last = Path(work_dir, 'last_checkpoint').read_text('utf-8').strip()
    paths = _latest_first(work_dir, last)
    for i, path in enumerate(paths):
        try:
            checkpoint = read_checkpoint(path)
        except InputError as error:
            notes.append(f'skipped: {error}')
            continue
        if checkpoint.resumable:
            if osp.basename(last) != osp.basename(path):
                notes.append(f'last_checkpoint of {work_dir} names {last or "nothing"}; resuming from {path}')
            older = [other for other in paths[i + 1 :] if _is_later(other, path)]
            notes += [f'{o} has more iterations but is older; resuming from {path}' for o in older]
            return checkpoint, notes
        if 'message_hub' in checkpoint.content:
            notes.append(f'skipped: {path} was saved without the optimizer')
    return (read_checkpoint(last) if '://' in last else None), notes


def _latest_first(work_dir: str, last: str) -> list[str]:
    folders = [work_dir]
    # If the file is in the work dir, last_checkpoint may name the folder from before it was moved.
    if last and not osp.exists(osp.join(work_dir, osp.basename(last))):
        folders.append(osp.dirname(last))
    paths = [osp.join(f, name) for f in folders if osp.isdir(f) for name in os.listdir(f)]
    # best_*.pth is no candidate: it may be of any iteration.
    paths = [p for p in paths if re.match(r'(?!\.|best_).*\.pth$', osp.basename(p)) and osp.isfile(p)]
    named = [path for path in paths if osp.basename(path) == osp.basename(last)]
    written = osp.getmtime(osp.join(work_dir, 'last_checkpoint')) if named else 0.0

    def order(path: str) -> tuple:
        time = osp.getmtime(path)
        killed = any(time > written and _is_later(path, other) for other in named)
        return killed, path in named, time, path

    return sorted(paths, key=order, reverse=True)


def _is_later(path: str, other: str) -> bool:
    """Compare the numbers in names such as ``iter_20.pth``."""
    a, b = (re.match(r'(.*?)(\d+)\.pth$', osp.basename(p)) for p in (path, other))
    return bool(a and b) and a[1] == b[1] and int(a[2]) > int(b[2])
