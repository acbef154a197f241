"""Mixed precision in inference: what stays in float32, and how long converted weights last."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import is_autocast_available


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Autocast off, on a device that has it."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()


def converted_once() -> AbstractContextManager:
    """Let all passes in this context share the weights that autocast converts; they must not change."""
    # Autocast frees its cache of weights when the outermost of its contexts exits.
    return torch.autocast('cpu', enabled=False)


class WideConv2d(nn.Conv2d):
    """``nn.Conv2d`` padded with zeros, in at least float32, under autocast and with 16-bit weights too."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        with without_autocast(x.device):
            return F.conv2d(x.to(dtype), weight, bias, self.stride, self.padding, self.dilation, self.groups)


def score_in_float32(model: nn.Module) -> list[nn.Conv2d]:
    """Make the ``conv_seg`` of mmseg's heads in a model a :class:`WideConv2d`, in place; returns them.

    A bfloat16 has less than three digits: two classes often have the same score at a pixel, and again once
    the scores are resized. Then the class that comes first wins.
    """
    changed = []
    cascades = [m.decode_head for m in model.modules() if hasattr(m, 'decode_head')]
    # Their scores are what the next head reads.
    earlier = {head for heads in cascades if isinstance(heads, nn.ModuleList) for head in heads[:-1]}
    for head in model.modules():
        conv = None if head in earlier else getattr(head, 'conv_seg', None)
        if type(conv) is nn.Conv2d and conv.padding_mode == 'zeros':
            conv.__class__ = WideConv2d
            changed.append(conv)
    return changed


@contextmanager
def scores_in_float32(model: nn.Module) -> Iterator[None]:
    """:func:`score_in_float32` within this context."""
    changed = score_in_float32(model)
    try:
        yield
    finally:
        for conv in changed:
            conv.__class__ = nn.Conv2d
