"""What one output pixel sees: the effective receptive field of each stage, as a picture and in numbers.

    python tools/visualization/receptive_field.py CONFIG CHECKPOINT --img IMAGE_OR_FOLDER --out work_dirs/erf

CONFIG may also name a model of mmpretrain or mmseg, or a backbone such as mmpretrain.SwinTransformer:tiny.
Writes OUT.png and OUT.pdf, the fields on a logarithmic scale, and OUT.csv, the side of the central box that
holds 50, 90 and 99 % of each. Without a checkpoint the weights are random; without images the input is
noise. Images are prepared as in a test of the config.

The effective receptive field (Luo et al., arXiv:1701.04128) is the mean over images of
|d sum_c y[c, centre] / dx|, for the central pixel of an output map y.
"""

import argparse
import os.path as osp
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.measure import progress_bar
from mmvisiongru.models import VisionGRU
from tools.outputs import check_figure, counted, stem
from tools.visualization.figures import save_figure
from tools.visualization.images import add_backbone_options, backbone_and_images

SHARES = (0.5, 0.9, 0.99)
# Far below an even share of the image, which is 1, nothing is worth a shade.
FAINTEST = 1e-3


def receptive_fields(backbone: nn.Module, images: Iterable[Tensor]) -> list[Tensor]:
    """Effective receptive field of the central pixel of each output map.

    Args:
        backbone (nn.Module): Gives a tuple of maps (B, C, H, W).
        images (Iterable[Tensor]): Normalised images (1, C, H, W), all of one size.

    Returns:
        list[Tensor]: (H, W) for each output map: the share of each pixel. They sum to 1.

    Raises:
        InputError: The backbone gives no maps, as a vision transformer that gives its class token.
    """
    backbone.eval()
    # A classifier needs the last map only.
    if isinstance(backbone, VisionGRU) and not backbone.out_norms:
        backbone.out_indices = tuple(range(len(backbone.depths)))
    fields = []
    for image in images:
        image = image.detach().requires_grad_()
        maps = backbone(image)
        if not isinstance(maps, (tuple, list)) or any(getattr(y, 'ndim', 0) != 4 for y in maps):
            raise InputError(f"{type(backbone).__name__} gives no maps; a ViT does with out_type='featmap'")
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


def draw(fields: list, sides: list[list[float]]) -> Figure:
    """One panel for each map, with the boxes that hold the shares."""
    height, width = fields[0].shape
    figure = Figure(figsize=(3 * len(fields) + 1, 2.7 * height / width + 1.4), layout='constrained')
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    brightest = max(10, *(float(field.max() * field.numel()) for field in fields))
    for i, (panel, field, row) in enumerate(zip(panels, fields, sides, strict=True)):
        relative = (field * field.numel()).clamp(min=FAINTEST).numpy()
        shown = panel.imshow(relative, cmap='magma', norm=LogNorm(FAINTEST, brightest))
        for share, side, style in zip(SHARES, row, ('-', '--', ':'), strict=True):
            corner = (width * (1 - side) / 2 - 0.5, height * (1 - side) / 2 - 0.5)
            box = Rectangle(corner, width * side, height * side, fill=False, ec='c', ls=style, lw=1.5)
            box.set_label(f'{share:.0%} of the weight')
            panel.add_patch(box)
        panel.set_title(f'map {i}\n90% in {row[1]:.0%} of the side')
        panel.set_xticks([0, width - 1], ['0', str(width)])
        panel.set_yticks([0, height - 1], ['0', str(height)])
    figure.legend(handles=panels[0].patches, loc='outside lower center', ncols=min(3, len(fields)))
    figure.colorbar(shown, ax=panels.tolist(), label='weight of a pixel (1: even share)')
    return figure


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_backbone_options(parser)
    parser.add_argument('--number', type=int, default=16, help='images to average over')
    parser.add_argument(
        '--out', type=stem, default='work_dirs/receptive_field', help='write OUT.png, OUT.pdf and OUT.csv'
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Average over the images, then draw."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        if args.number < 1:
            raise InputError(f'--number must be at least 1, got {args.number}')
        backbone, images, _ = backbone_and_images(args, args.number)
        check_figure(args.out, [args.img] if args.img and osp.isdir(args.img) else [])
        with progress_bar() as bar:
            fields = receptive_fields(backbone, bar.track(images, description='images'))
        sides = [[central_side(field, share) for share in SHARES] for field in fields]
        rows = [(i, *(f'{100 * side:.1f}' for side in row)) for i, row in enumerate(sides)]
        head = ('map', *(f'side_of_{share:.0%}' for share in SHARES))
        written = save_figure(draw(fields, sides), [head, *rows], args.out)
    for i, *row in rows:
        holding = ', '.join(f'{share:.0%} within {side} %' for share, side in zip(SHARES, row, strict=True))
        print(f'map {i}: {holding} of the side of the image')
    height, width = images[0].shape[2:]
    print(f'{counted(len(images), "image")} of {width} x {height}: {written}')


if __name__ == '__main__':
    main()
