"""How far each stage of VisionGRU remembers: the time constants of its gates, as maps and as a histogram.

    python tools/visualization/gate_memory.py CONFIG CHECKPOINT --img IMAGE --out work_dirs/memory

A gate that stayed as it is would keep 1/e of a state for tau tokens. OUT.png shows, for the last block of
each stage, a map of tau (the geometric mean over channels) and its histogram over tokens and channels, with
the length of a row and of the whole map; OUT.csv has the quartiles of every block.
"""

import argparse
import csv
from pathlib import Path

import torch

from mmvisiongru.analysis.images import read_inputs
from mmvisiongru.analysis.insight import backbone_of, gate_memories
from mmvisiongru.checkpoint import load_weights
from mmvisiongru.files import check_folder
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.zoo import build_model

# Of the histograms, in tokens.
BINS = torch.logspace(-1, 5, 49).numpy()
QUARTILES = {'q25': 0.25, 'median': 0.5, 'q75': 0.75}
# A quantile of more elements costs more than it tells.
MOST = 1 << 20


def summarise(memories: list, depths) -> list[dict]:
    """One row a block: stage, block, size of the map, quartiles of tau, and the share that spans a row."""
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    rows = []
    for (stage, block), tau in zip(places, memories, strict=True):
        height, width = tau.shape[:2]
        # Whole tokens: single numbers at equal distances may all be of a few channels.
        tokens = tau.flatten(0, 1)
        values = tokens[:: -(-tau.numel() // MOST)].flatten()
        row = dict(stage=stage, block=block, height=height, width=width)
        row |= {name: float(values.quantile(q)) for name, q in QUARTILES.items()}
        rows.append(row | dict(longer_than_a_row=float((values > width).float().mean())))
    return rows


def plot(image, memories: list, rows: list[dict], path: Path) -> None:
    """The image, then a map and a histogram for each stage."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    last = [i for i, row in enumerate(rows) if i + 1 == len(rows) or rows[i + 1]['stage'] != row['stage']]
    figure, axes = plt.subplots(2, 1 + len(last), figsize=(3.1 * (1 + len(last)), 5.6), layout='constrained')
    axes[0, 0].imshow(image)
    axes[0, 0].set_title('image')
    axes[1, 0].axis('off')
    for panel in axes[0]:
        panel.set_xticks([])
        panel.set_yticks([])
    for (top, bottom), i in zip(axes[:, 1:].T, last, strict=True):
        tau, row = memories[i].clamp(min=1e-2), rows[i]
        length = row['height'] * row['width']
        mean = tau.log().mean((2, 3)).exp()
        shown = top.imshow(mean.numpy(), cmap='viridis')
        figure.colorbar(shown, ax=top, shrink=0.8, format='%.3g')
        top.set_title(f'stage {row["stage"]}, block {row["block"]}: tau / tokens')
        for p in range(tau.size(2)):
            style = dict(histtype='step', color='k', linestyle=('-', '--', ':', '-.')[p % 4])
            bottom.hist(tau[:, :, p].flatten().numpy(), BINS, label=f'path {p}', **style)
        bottom.set_xscale('log')
        bottom.set_yticks([])
        bottom.set_xlabel('tau / tokens')
        for x, name in ((row['width'], 'row'), (length, 'map')):
            bottom.axvline(x, color='tab:red', linewidth=1)
            bottom.annotate(
                name, (x, 0.97), xycoords=('data', 'axes fraction'), rotation=90, va='top', ha='right'
            )
    axes[1, 0].legend(*bottom.get_legend_handles_labels(), loc='center')
    figure.savefig(path, dpi=110)


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file with a VisionGRU')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint (default: random weights)')
    parser.add_argument('--img', help='image (default: noise)')
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--out', default='work_dirs/gate_memory', help='write OUT.png and OUT.csv')
    return parser.parse_args(argv)


def main(argv=None):
    """Run one image, then draw."""
    args = parse_args(argv)
    out = Path(args.out)
    with one_line_errors():
        check_folder(str(out.parent))
        model = build_model(args.config)
        if args.checkpoint:
            load_weights(model, args.checkpoint)
        backbone = backbone_of(model)
        (image,) = read_inputs(model, args.img, 1, args.shape)
        memories = gate_memories(backbone, image)
    rows = summarise(memories, backbone.depths)
    with out.with_name(f'{out.name}.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f'{v:.4g}' if isinstance(v, float) else v for k, v in row.items()})
    low, high = image.amin(), image.amax()
    shown = ((image[0] - low) / (high - low).clamp(min=1e-9)).permute(1, 2, 0).numpy()
    plot(shown, memories, rows, out.with_name(f'{out.name}.png'))
    for row in rows:
        print(
            f'stage {row["stage"]}, block {row["block"]}: tau {row["median"]:.3g} tokens in the median, '
            f'{row["longer_than_a_row"]:.0%} beyond a row of {row["width"]}'
        )
    print(f'{out}.png, {out}.csv')


if __name__ == '__main__':
    main()
