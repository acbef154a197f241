"""VisionGRU whose candidate is g - 0.5, 0 at 0 like the linear one; for experiments/NOTES.md only."""

from functools import partial

import torch
from torch import Tensor

from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D
from mmvisiongru.ops import mingru_scan_2d
from mmvisiongru.registry import MODELS


def shifted(mixer: MinGRU2D, x: Tensor) -> Tensor:
    """The mixer with candidate g - 0.5, (B, H, W, C) -> (B, H, W, C).

    The recurrence is linear in the candidate: what 0.5 alone would leave in the state is taken off.
    """
    u = mixer.in_proj(mixer.dwconv(x))
    gate = u.unflatten(-1, (len(mixer.paths), 2, -1))[..., 1, :]
    constant = torch.stack((torch.full_like(gate, 0.5), gate), -2).flatten(-3)
    h = mingru_scan_2d(u, paths=mixer.paths, candidate='g')
    return mixer.out_proj(h - mingru_scan_2d(constant, paths=mixer.paths, candidate='linear'))


@MODELS.register_module()
class ShiftedVisionGRU(VisionGRU):
    """VisionGRU with :func:`shifted` in place of every mixer's forward pass."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, MinGRU2D):
                module.forward = partial(shifted, module)
