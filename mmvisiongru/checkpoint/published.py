"""Weights that come with the package, by name or as ``mmvisiongru://NAME``.

Files are ``weights/NAME-HASH.pth``: weights in half precision, and in ``meta`` the name of the config,
classes and palette, the metric that exactly these weights reached, the commit that trained them, the terms of
the data and the SHA-256 of the weights, whose first digits are HASH. ``tools/misc/publish_weights.py`` writes
them.
"""

import hashlib
import os
from pathlib import Path

from torch import Tensor

from mmvisiongru.errors import InputError, did_you_mean
from mmvisiongru.files import shipped

SCHEME = 'mmvisiongru://'


def published_weights() -> dict[str, Path]:
    """File of each set of weights that comes with the package, by name."""
    folder = shipped('weights')
    return {path.stem.rpartition('-')[0]: path for path in sorted(folder.glob('*-*.pth') if folder else ())}


def find_published(path: str) -> Path | None:
    """The file of published weights that ``path`` names, None if it is a path or address of another kind.

    Raises:
        InputError: There are no published weights of this name.
    """
    path = str(path)
    name, known = path.removeprefix(SCHEME), published_weights()
    if name in known and (path != name or not os.path.exists(path)):
        return known[name]
    if path != name:
        names = ', '.join(known) or 'none; install mmvisiongru again'
        raise InputError(f'no weights are named {name!r}{did_you_mean(name, known)}; there are {names}')
    return None


def weights_hash(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    found = hashlib.sha256()
    for key in sorted(state_dict):
        found.update(key.encode())
        found.update(state_dict[key].cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def check_hash(path: Path, content: dict) -> None:
    """Refuse published weights that differ from the hash in their file name and metadata."""
    found = weights_hash(content['state_dict'])
    if found[:8] != path.stem.rpartition('-')[2] or found != content['meta']['sha256']:
        raise InputError(f'weights {path} do not have the hash {path.stem[-8:]}; install mmvisiongru again')
