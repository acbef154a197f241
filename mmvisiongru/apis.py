"""mmvisiongru in a program of one's own: configs by name, and models with weights."""

import torch
from torch import nn

from mmvisiongru.checkpoint import load_weights
from mmvisiongru.config import get_config, list_configs
from mmvisiongru.models.layers.precision import score_in_float32
from mmvisiongru.zoo import build_model

__all__ = ['get_config', 'get_model', 'list_configs']


def get_model(
    name: str, checkpoint: str | None = None, device: str = 'cpu', dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Build a model for inference.

    Args:
        name (str): A config file; the name of a config of this package, of mmpretrain or of mmseg; or a
            backbone as ``SCOPE.TYPE:ARCH``, e.g. ``mmvisiongru.VisionGRU:tiny``.
        checkpoint (str, optional): A file that fits in every key. Without one weights are random.
        device (str): Where the model is put.
        dtype (torch.dtype): Of the weights, converted once. ``torch.bfloat16`` is faster on CPUs that have
            instructions for it; images may stay in float32.

    Returns:
        nn.Module: In evaluation mode. ``model.backbone(x)`` of a classifier or segmentor, or a backbone
        itself, gives a tuple of maps (B, C, H, W) for normalised images (B, 3, H, W).

    Raises:
        InputError: There is no such model, or the checkpoint does not fit; the message is one line.

    Examples:
        >>> import torch
        >>> from mmvisiongru.apis import get_model
        >>> backbone = get_model('mmvisiongru.VisionGRU:pico')
        >>> [tuple(x.shape[2:]) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(16, 24), (8, 12), (4, 6), (2, 3)]
    """
    model = build_model(name)
    if checkpoint:
        load_weights(model, checkpoint)
    score_in_float32(model)
    return model.to(device, dtype).eval()
