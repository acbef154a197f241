"""What one output pixel sees: the effective receptive field of each stage, as a picture and in numbers.

    python tools/visualization/receptive_field.py CONFIG CHECKPOINT --img IMAGE_OR_FOLDER --out work_dirs/erf

CONFIG may also name a model of mmpretrain or mmseg, or a backbone such as mmpretrain.SwinTransformer:tiny.
Writes OUT.png, the fields on a logarithmic scale, and OUT.csv, the side of the central square that holds 50,
90 and 99 % of each. Without a checkpoint the weights are random; without
images the input is noise.
"""

import argparse
import csv
from pathlib import Path

from mmvisiongru.analysis.images import read_inputs
from mmvisiongru.analysis.insight import backbone_of, receptive_fields, side_that_holds
from mmvisiongru.checkpoint import load_weights
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.measure import progress_bar
from mmvisiongru.zoo import build_model

SHARES = (0.5, 0.9, 0.99)


def plot(fields: list, rows: list[dict], path: Path) -> None:
    """One panel a stage, with the squares that hold the shares."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplots(
        1, len(fields), figsize=(3.4 * len(fields), 4), layout='constrained', squeeze=False
    )
    for panel, field, row in zip(axes[0], fields, rows, strict=True):
        height, width = field.shape
        # An even share of the image is 1; far below it nothing is worth a shade.
        relative = (field * field.numel()).clamp(min=1e-3).numpy()
        shown = panel.imshow(relative, cmap='magma', norm=LogNorm(1e-3, max(10, relative.max())))
        for share, style in zip(SHARES, ('-', '--', ':'), strict=True):
            side = row[f'side_of_{share:.0%}'] / 100
            corner = (width * (1 - side) / 2 - 0.5, height * (1 - side) / 2 - 0.5)
            square = Rectangle(corner, width * side, height * side, fill=False, color='w', linestyle=style)
            square.set_label(f'{share:.0%}')
            panel.add_patch(square)
        panel.set_title(f'map {row["map"]}: 90 % in {row["side_of_90%"]:.0f} % of the side')
        panel.set_xticks([0, width - 1], ['0', str(width)])
        panel.set_yticks([0, height - 1], ['0', str(height)])
    axes[0, 0].legend(title='holds', loc='upper left', fontsize=8, labelcolor='w', framealpha=0.4)
    figure.colorbar(shown, ax=axes[0].tolist(), label='weight (1: an even share of the image)', shrink=0.8)
    figure.savefig(path, dpi=110)


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file, model or backbone')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint (default: random weights)')
    parser.add_argument('--img', help='image or folder (default: noise)')
    parser.add_argument('--number', type=int, default=16, help='images to average over')
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--out', default='work_dirs/receptive_field', help='write OUT.png and OUT.csv')
    return parser.parse_args(argv)


def main(argv=None):
    """Average over the images, then draw."""
    args = parse_args(argv)
    out = Path(args.out)
    with one_line_errors():
        if args.number < 1:
            raise InputError(f'--number must be at least 1, got {args.number}')
        check_folder(str(out.parent))
        model = build_model(args.config)
        if args.checkpoint:
            load_weights(model, args.checkpoint)
        images = read_inputs(model, args.img, args.number, args.shape)
    with progress_bar() as bar:
        fields = receptive_fields(backbone_of(model), bar.track(images, description='images'))
    rows = [
        {'map': i} | {f'side_of_{s:.0%}': round(100 * side_that_holds(field, s), 1) for s in SHARES}
        for i, field in enumerate(fields)
    ]
    with out.with_name(f'{out.name}.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    plot(fields, rows, out.with_name(f'{out.name}.png'))
    for row in rows:
        sides = ', '.join(f'{s:.0%} within {row[f"side_of_{s:.0%}"]} %' for s in SHARES)
        print(f'map {row["map"]}: {sides} of the side of the image')
    print(f'{len(images)} images: {out}.png, {out}.csv')


if __name__ == '__main__':
    main()
