"""Models that the benchmarks compare, by the names that tables and figures give them."""

import torch
from mmengine.config import Config
from torch import nn

from mmvisiongru import optimize_for_inference
from mmvisiongru.zoo import build_model

COMPARED = {
    'VisionGRU-tiny': 'visiongru-tiny_8xb128_in1k',
    'VRWKV-S': 'vrwkv-small_8xb128_in1k',
    'Swin-T': 'swin-tiny_16xb64_in1k',
    'DeiT-S': 'deit-small_4xb256_in1k',
    'ConvNeXt-T': 'convnext-tiny_32xb128_in1k',
}
# Over resolutions: two of linear cost, one with attention in windows, one with attention everywhere.
OVER_SIZES = ('VisionGRU-tiny', 'VRWKV-S', 'Swin-T', 'DeiT-S')


def build_for_inference(model: str | Config, device: torch.device) -> nn.Module:
    """A model on a device; on a CPU with the layers that are fast there, whosever model it is."""
    built = build_model(model).to(device)
    return optimize_for_inference(built) if device.type == 'cpu' else built
