r"""Parameters and multiply-accumulates of a model.

The convention is that of the VisionGRU paper and of its field: "FLOPs" are multiply-accumulates (MACs) of
convolutions, matrix products, attention and scan, for one image. A MAC is two floating-point operations.
Normalisation, activations, biases, additions and interpolation are not counted. The scan counts two MACs for
each element of its state, h_t = (1 - z_t) h_{t-1} + z_t c_t. Bi-WKV counts seven for each element of its
output: x v, and numerator and denominator of the past, the future and the token itself.

Operators are counted where torch dispatches them, whichever module or function calls them. That includes
fused attention and the scan, which counters of modules miss.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Registers the formulas of the operators.
import mmvisiongru.ops  # noqa: F401
from mmvisiongru.config import pipeline_of, type_name
from mmvisiongru.measure import forward
from mmvisiongru.models.layers.joined_conv import JoinedConv2d
from mmvisiongru.zoo import image_channels, single_view

# Operators by their kind; products of batches of matrices are attention in every model here.
KINDS = dict(convolution='convolution', mm='linear', addmm='linear', bmm='attention', baddbmm='attention')


def _kind(operator) -> str:
    name = str(operator).split('.')[1]
    if name.startswith(('mingru_scan', 'bi_wkv')):
        return 'scan'
    return KINDS.get(name, 'attention' if 'attention' in name else name)


def image_size(cfg: Config, default: int = 224) -> tuple[int, int]:
    """Height and width that a config trains a segmentor or tests a classifier with."""
    if size := (single_view(cfg).get('data_preprocessor') or {}).get('size'):
        return tuple(size)
    for loader in ('test_dataloader', 'train_dataloader'):
        for step in reversed(pipeline_of(cfg, loader)):
            size = step.get('crop_size') or step.get('scale')
            if isinstance(size, int):
                return size, size
            if size:
                # mmcv's take width before height; images that keep their ratio have this size at most.
                return tuple(size[::-1] if type_name(step).endswith(('Resize', 'CenterCrop')) else size)
    return default, default


def count(model: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Count parameters and the MACs of one image in inference.

    On the meta device (``model.to('meta')``) nothing is computed, whatever the size.

    Args:
        model (nn.Module): A classifier, segmentor, detector or backbone; it is put into evaluation mode.
        shape (Sequence[int]): Height and width of the image.

    Returns:
        dict[str, int]: ``parameters``, ``macs``, and ``macs_KIND`` for each kind of operator that occurs.
    """
    device = next(model.parameters()).device
    image = torch.empty(1, image_channels(model), *shape, device=device)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        (_detect if hasattr(model, 'roi_head') else forward)(model, image)
    counts, parts = counter.get_flop_counts(), Counter()
    for operator, flops in counts['Global'].items():
        parts[f'macs_{_kind(operator)}'] += flops // 2
    # These convolutions consist of matrix products.
    for name, module in model.named_modules():
        if isinstance(module, JoinedConv2d):
            for operator, flops in counts.get(f'{type(model).__name__}.{name}', {}).items():
                parts[f'macs_{_kind(operator)}'] -= flops // 2
                parts['macs_convolution'] += flops // 2
    parts = {kind: macs for kind, macs in parts.items() if macs}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return dict(parameters=parameters, macs=sum(parts.values()), **parts)


def _detect(model: nn.Module, image: torch.Tensor) -> None:
    """Run a detector of two stages on as many proposals and masks as its test has at most, as is customary.

    What it would find in an image without values is not known.
    """
    maps, head, limits = model.extract_feat(image), model.roi_head, model.test_cfg
    model.rpn_head(maps)
    for name, regions in (('bbox', limits.rpn.max_per_img), ('mask', limits.rcnn.max_per_img)):
        if part := getattr(head, f'{name}_head', None):
            size = getattr(head, f'{name}_roi_extractor').roi_layers[0].output_size
            part(image.new_empty(regions, maps[0].size(1), *size))
