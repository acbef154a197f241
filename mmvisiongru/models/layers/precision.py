"""Mixed precision at inference: what stays in float32, and how long converted weights last."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Autocast off, on a device that has it."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()


def converted_once() -> AbstractContextManager:
    """Let all passes in this context share the weights that autocast converts; they must not change.

    Autocast drops its copies where the outermost of its contexts ends, which is else after each pass.
    """
    return torch.autocast('cpu', enabled=False)


class WideConv2d(nn.Conv2d):
    """``nn.Conv2d`` in at least float32, under autocast and with 16-bit weights too."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with without_autocast(x.device):
            return self._conv_forward(x.to(dtype), self.weight.to(dtype), bias)


def score_in_float32(model: nn.Module) -> None:
    """Let the ``conv_seg`` of mmseg's heads in a model be a :class:`WideConv2d`, in place.

    A bfloat16 has less than three digits: two classes often score the same number at a pixel, and again once
    the scores are resized. Then the class that comes first wins.
    """
    for head in model.modules():
        conv = getattr(head, 'conv_seg', None)
        if type(conv) is nn.Conv2d:
            # Not another layer: whoever holds this one, or hooked it, keeps it.
            conv.__class__ = WideConv2d
