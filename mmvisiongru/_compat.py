"""Private names of other packages, each with the version it was read in and a fallback.

No other module of mmvisiongru may read a ``_private`` attribute of a foreign package
(``tests/test_layout.py`` checks this), so that an upgrade of a dependency has one file to break. Every name
here works without its private counterpart, more slowly or with less detail.
"""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward mode is active; public API has no question for it (torch 2.15)."""
    try:
        return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    except AttributeError:
        return False
