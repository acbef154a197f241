"""Small backbones and images for the tests of VisionGRU."""

import math

import torch
from torch import nn

from mmvisiongru.models.visiongru import VisionGRU
from mmvisiongru.ops.scan_paths import PATHS

# Widths that are no multiples of each other, so that a mixed-up one shows.
SMALL = dict(embed_dims=[8, 12, 20, 28], depths=[1, 1, 2, 1])
TWO_PATHS = ('row', 'row_reverse')
FOUR_PATHS = tuple(PATHS)


def small(seed=0, **options):
    """A small model whose every parameter matters: none is at the 0 or 1 where norms and biases start."""
    torch.manual_seed(seed)
    model = VisionGRU(**{'arch': SMALL, **options})
    for param in model.parameters():
        nn.init.normal_(param, mean=float(param.ndim == 1), std=0.3)
    return model


def image(*size, dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def map_sizes(H, W):  # noqa: N803
    """Four strided convolutions of ceil(n / 2), the first stage after two of them."""
    sizes = []
    for stage in range(4):
        for _ in range(2 if stage == 0 else 1):
            H, W = math.ceil(H / 2), math.ceil(W / 2)
        sizes.append((H, W))
    return sizes
