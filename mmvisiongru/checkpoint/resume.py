"""The checkpoint that an interrupted run goes on from."""

import os
import os.path as osp

from mmvisiongru.errors import InputError

from .load import load_checkpoint_file
from .seal import check_whole, read_seal


def find_checkpoint(work_dir: str) -> tuple[str | None, list[str]]:
    """The whole checkpoint of the most iterations from which a run can be resumed.

    ``last_checkpoint`` is only a hint of where to look: it may be missing, empty, older than the newest file,
    or name the folder before it was moved. Where checkpoints go to a storage service, it is all there is.

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
    # A storage service cannot be searched: what is written last is all there is to know.
    return last if '://' in last else None, notes


def _last_checkpoint(work_dir: str) -> str:
    try:
        with open(osp.join(work_dir, 'last_checkpoint'), encoding='utf-8') as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ''


def _iteration(path: str) -> int:
    """Iterations that a checkpoint is from, -1 if it holds no state of a run."""
    if sealed := read_seal(path):
        return sealed[0]
    checkpoint = load_checkpoint_file(path)
    resumable = isinstance(checkpoint, dict) and {'meta', 'message_hub', 'optimizer'} <= set(checkpoint)
    return checkpoint['meta'].get('iter', -1) if resumable else -1
