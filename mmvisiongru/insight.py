r"""What a trained backbone looks at: effective receptive fields, and the memory of the scan's gates.

The effective receptive field of Luo et al. (arXiv:1701.04128) is the mean over images of
\|d sum_c y[c, centre] / d x\|, for the central pixel of an output map y.

A state of minGRU is h_t = keep_t h_{t-1} + ..., keep_t = sigmoid(-gate_t). A constant gate leaves 1/e of it
after tau = -1 / ln(keep) = 1 / softplus(gate) tokens.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmvisiongru.checkpoint import load_weights
from mmvisiongru.drawing import as_rgb
from mmvisiongru.errors import InputError
from mmvisiongru.images import find_images, image_reader, normalised
from mmvisiongru.launch.options import add_config_options
from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D
from mmvisiongru.zoo import build_model, image_channels, image_size, model_config


def add_options(parser: ArgumentParser) -> None:
    """Add the model and its images."""
    add_config_options(parser)
    parser.add_argument('checkpoint', nargs='?', help='checkpoint (default: random weights)')
    parser.add_argument('--img', help='image or folder (default: noise)')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="resize and crop images to this size (default: what the config's test pipeline makes of them)",
    )


def backbone_and_images(args: Namespace, number: int) -> tuple[nn.Module, list[Tensor], list[np.ndarray]]:
    """The backbone of a model, and images as it gets them.

    Args:
        args (Namespace): With ``config``, ``checkpoint``, ``img`` (a path; None for noise) and ``shape``.
        number (int): Images at most, spread over the folder.

    Returns:
        tuple: The backbone; the images (1, C, H, W), all of one size; and the same before they were
        normalised, (H, W, 3), RGB.
    """
    cfg = model_config(args.config, args.cfg_options)
    model = build_model(cfg)
    # Some backbones of mmpretrain return nothing here.
    model.eval()
    if args.checkpoint:
        load_weights(model, args.checkpoint)
    backbone = getattr(model, 'backbone', model)
    if args.img is None:
        size = (1, image_channels(model), *(args.shape or image_size(cfg)))
        noise = torch.randn(number, *size, generator=torch.Generator().manual_seed(0))
        return backbone, list(noise), [as_rgb(64 * image[0] + 128) for image in noise]
    read, paths = image_reader(cfg, args.shape), find_images(args.img)
    number = min(number, len(paths))
    samples = [read(paths[i * len(paths) // number]) for i in range(number)]
    if isinstance(samples[0]['inputs'], list):
        raise InputError(f'{args.config} tests several views of an image; give the config without them')
    images = [normalised(model, sample) for sample in samples]
    if len(sizes := {image.shape[2:] for image in images}) > 1:
        sizes = ', '.join(f'{h} x {w}' for h, w in sorted(sizes)[:3])
        raise InputError(f'the images come out in several sizes ({sizes}); set --shape H W')
    return backbone, images, [as_rgb(sample['inputs']) for sample in samples]


def receptive_fields(backbone: nn.Module, images: Iterable[Tensor]) -> list[Tensor]:
    """Effective receptive field of the central pixel of each output map.

    Args:
        backbone (nn.Module): Gives a tuple of maps (B, C, H, W).
        images (Iterable[Tensor]): Normalised images (1, C, H, W), all of one size.

    Returns:
        list[Tensor]: (H, W) for each output map: the share of each pixel. They sum to 1.
    """
    backbone.eval()
    # A classifier needs the last map only.
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


def central_side(field: Tensor, share: float) -> float:
    """Side of the smallest central rectangle that holds a share of a field, over the side of the image."""
    height, width = field.shape
    rows, columns = ((torch.arange(n) - n // 2).abs() / n for n in (height, width))
    distance, order = torch.maximum(rows[:, None], columns).flatten().sort(stable=True)
    inside = field.flatten()[order].cumsum(0)
    index = int(torch.searchsorted(inside, share * inside[-1]).clamp(max=inside.numel() - 1))
    return min(1.0, float(2 * distance[index] + 1 / max(height, width)))


def gate_memories(backbone: nn.Module, image: Tensor) -> list[tuple[tuple[str, ...], Tensor]]:
    """Time constants of every block's gates, in tokens.

    Args:
        backbone (nn.Module): Holds :class:`mmvisiongru.models.layers.MinGRU2D` mixers.
        image (Tensor): A normalised image, (1, C, H, W).

    Returns:
        list[tuple]: For each block, in the order in which they run, the names of its P paths, and tau,
        (H, W, P, D).

    Raises:
        InputError: The backbone has no minGRU gates.
    """
    mixers = [module for module in backbone.modules() if isinstance(module, MinGRU2D)]
    if not mixers:
        raise InputError(f'{type(backbone).__name__} has no minGRU gates; only VisionGRU has')
    memories = []

    def note(mixer):
        def hook(module, inputs, projected):
            # For each path, D channels of hidden come before D of gate.
            gates = projected[0].unflatten(-1, (len(mixer.paths), 2, -1))[..., 1, :]
            memories.append((mixer.paths, 1 / softplus(gates.float())))

        return mixer.in_proj.register_forward_hook(hook)

    handles = [note(mixer) for mixer in mixers]
    try:
        with torch.no_grad():
            backbone.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    return memories
