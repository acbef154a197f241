"""Private names of other packages, each with the version it was read in and a fallback.

No other module of mmvisiongru may read a ``_private`` attribute of a foreign package
(``tests/test_layout.py`` checks this), so that an upgrade of a dependency has one file to break. Every name
here works without its private counterpart, more slowly or with less detail.
"""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward mode is active; public API has no question for it (torch 2.15)."""
    try:
        return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    except AttributeError:
        return False


def checkpoint_loaders(checkpoint_loader: type) -> dict[str, Callable]:
    """Get the functions in mmengine's CheckpointLoader by the beginning of an address (mmengine 0.10.12).

    It registers them in public and looks them up in private. Without the name, callers assume mmengine's own.
    """
    return getattr(checkpoint_loader, '_schemes', {})
