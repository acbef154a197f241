"""Small backbones and images."""

import torch
from torch import nn

from mmvisiongru.models import VRWKV, VisionGRU, VRWKVAdapter

# Widths that are no multiples of each other, so that a mixed-up one shows.
SMALL = {
    VisionGRU: dict(arch=dict(embed_dims=[8, 12, 20, 28], depths=[1, 1, 2, 1])),
    VRWKV: dict(arch=dict(embed_dims=18, depth=3, post_norm=True, layer_scale=0.5)),
    VRWKVAdapter: dict(
        arch=dict(embed_dims=12, depth=4, layer_scale=0.5, num_heads=3), prior_channels=4, points=2
    ),
}


def small(kind=VisionGRU, seed=0, **options):
    """A small model whose every parameter and buffer matters: none is at its initial 0 or 1."""
    torch.manual_seed(seed)
    model = kind(**{**SMALL[kind], **options})
    for name, param in model.named_parameters():
        if 'sampling_offsets.bias' not in name:
            nn.init.normal_(param, mean=float(param.ndim == 1), std=0.3)
    for name, value in model.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            nn.init.uniform_(value, 0.5, 1.5)
    return model


def image(*size, dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)
