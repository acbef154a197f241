r"""What a trained backbone looks at: effective receptive fields, and the memory of the scan's gates.

The effective receptive field of Luo et al. (arXiv:1701.04128) is the mean over images of
\|d sum_c y[c, centre] / d x\|, for the central pixel of an output map y.

A state of minGRU keeps h_t = keep_t h_{t-1} + ..., keep_t = sigmoid(-gate_t), of which a constant gate leaves
1/e after tau = -1 / ln(keep) = 1 / softplus(gate) tokens.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a classifier or a segmentor, or the model itself."""
    return getattr(model, 'backbone', model)


def receptive_fields(backbone: nn.Module, images: Iterable[Tensor]) -> list[Tensor]:
    """Effective receptive field of the central pixel of each output map.

    Args:
        backbone (nn.Module): Gives a tuple of maps (B, C, H, W).
        images (Iterable[Tensor]): Normalised images (1, 3, H, W), all of one size.

    Returns:
        list[Tensor]: (H, W) for each output map; the shares of the image's pixels, which sum to 1.
    """
    backbone.eval()
    # A classifier wants the last map only, and a reader all.
    if isinstance(backbone, VisionGRU) and not backbone.out_norms:
        backbone.out_indices = tuple(range(len(backbone.depths)))
    fields = []
    for image in images:
        image = image.detach().requires_grad_()
        maps = backbone(image)
        for i, y in enumerate(maps):
            centre = y[:, :, y.size(2) // 2, y.size(3) // 2].sum()
            (gradient,) = torch.autograd.grad(centre, image, retain_graph=i + 1 < len(maps))
            field = gradient[0].abs().sum(0)
            if i == len(fields):
                fields.append(torch.zeros_like(field))
            fields[i] += field / field.sum()
    return [field / field.sum() for field in fields]


def side_that_holds(field: Tensor, share: float) -> float:
    """Side of the smallest central square with this share of a field, over the side of the image."""
    height, width = field.shape
    rows, columns = (torch.arange(n) - n // 2 for n in (height, width))
    distance = torch.maximum(
        rows.abs()[:, None].expand(height, width) / height, columns.abs()[None].expand(height, width) / width
    )
    order = distance.flatten().argsort(stable=True)
    inside = field.flatten()[order].cumsum(0)
    index = int(torch.searchsorted(inside, share * inside[-1]).clamp(max=inside.numel() - 1))
    return min(1.0, float(2 * distance.flatten()[order][index] + 1 / max(height, width)))


def gate_memories(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    """Time constants of every block's gates, in tokens.

    Args:
        backbone (nn.Module): Holds :class:`MinGRU2D` mixers.
        image (Tensor): A normalised image, (1, 3, H, W).

    Returns:
        list[Tensor]: tau, (H, W, P, D), for each block in the order in which they run.

    Raises:
        InputError: The backbone has no minGRU gates.
    """
    mixers = [module for module in backbone.modules() if isinstance(module, MinGRU2D)]
    if not mixers:
        raise InputError(f'{type(backbone).__name__} has no minGRU gates, as only VisionGRU has')
    memories, handles = [], []

    def note(mixer):
        def hook(module, inputs, projected):
            # Of each path, D channels of hidden come before D of gate.
            gates = projected[0].unflatten(-1, (len(mixer.paths), 2, -1))[..., 1, :]
            memories.append(1 / softplus(gates.float()))

        return hook

    try:
        handles += [mixer.in_proj.register_forward_hook(note(mixer)) for mixer in mixers]
        with torch.no_grad():
            backbone.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    return memories
