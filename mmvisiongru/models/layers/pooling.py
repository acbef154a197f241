"""Adaptive average pooling whose gradient adds up in one order on a GPU too: two matrix products.

PyTorch's own adds it up with atomics there, and raises under ``torch.use_deterministic_algorithms``. The same
matrices are in ``deployment.translations.pooling``, in the operators of ONNX.
"""

import torch
from torch import Tensor, nn

from .precision import without_autocast


class AveragePool(nn.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d`` of maps (B, C, H, W): the same windows."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size), computed in at least float32."""
        sizes = self.output_size if isinstance(self.output_size, tuple) else (self.output_size,) * 2
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows, columns = (
            averages(size, bins or size, x.device).to(dtype)
            for size, bins in zip(x.shape[2:], sizes, strict=True)
        )
        # Autocast would round the shares of a position, such as 1 / 3.
        with without_autocast(x.device):
            return (rows @ (x.to(dtype) @ columns.T)).to(x.dtype)


def averages(size: int, bins: int, device: torch.device) -> Tensor:
    """Matrix (bins, size): row i averages positions floor(i size / bins) to ceil((i + 1) size / bins)."""
    first, at = (torch.arange(n, device=device) for n in (bins, size))
    start, end = first * size // bins, ((first + 1) * size + bins - 1) // bins
    inside = (at >= start[:, None]) & (at < end[:, None])
    return inside.double() / (end - start)[:, None]


def replace_pools(model: nn.Module) -> None:
    """Let :class:`AveragePool` take the place of each ``nn.AdaptiveAvgPool2d`` in a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.AdaptiveAvgPool2d:
                setattr(module, name, AveragePool(child.output_size))
