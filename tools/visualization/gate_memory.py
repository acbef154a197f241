"""How far each stage of VisionGRU remembers: the time constants of its gates, as maps and as a histogram.

    python tools/visualization/gate_memory.py CONFIG CHECKPOINT --img IMAGE --out work_dirs/memory

A state is h_t = keep_t h_{t-1} + ..., keep_t = sigmoid(-gate_t). A constant gate leaves 1/e of it after
tau = -1 / ln(keep) = 1 / softplus(gate) tokens.

OUT.png and OUT.pdf show, for the last block of each stage, a map of tau (geometric mean over channels and
paths) and its histogram over tokens and channels, beside the length of a row or column, as
the paths run, and of the map. OUT.csv has the quartiles of every block. The image is prepared as in a test of
the config.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn
from torch.nn.functional import softplus

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.models.layers import MinGRU2D
from tools.outputs import check_figure, stem
from tools.visualization.figures import save_figure
from tools.visualization.images import add_backbone_options, backbone_and_images

HEAD = ('stage', 'block', 'height', 'width', 'q25', 'median', 'q75', 'longer_than_a_line')
# Largest ratio of the 99 % and the 1 % quantile for a linear axis: one peak.
LINEAR = 10


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


def lines_of(paths: tuple[str, ...], height: int, width: int) -> dict[str, int]:
    """Tokens of a line of each kind of path: of a row, of a column, or of both."""
    lengths = dict(row=width, column=height)
    return {kind: lengths[kind] for kind in dict.fromkeys(path.split('_')[0] for path in paths)}


def summarise(memories: list, depths) -> list[tuple]:
    """One row of HEAD for each block: the quartiles of tau, and the share that spans the line of its path."""
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    rows = []
    # Stages behind the last map that the backbone returns do not run.
    for place, (paths, tau) in zip(places, memories, strict=False):
        height, width = tau.shape[:2]
        lines = lines_of(paths, height, width)
        line = torch.tensor([lines[path.split('_')[0]] for path in paths])[:, None]
        quartiles = np.quantile(tau.numpy(), (0.25, 0.5, 0.75)).tolist()
        rows.append((*place, height, width, *quartiles, float((tau > line).float().mean())))
    return rows


def draw(image, memories: list, rows: list[tuple]) -> Figure:
    """The image, then a map and a histogram for each stage."""
    last = [i for i, row in enumerate(rows) if i + 1 == len(rows) or rows[i + 1][0] != row[0]]
    figure = Figure(figsize=(3.1 * (1 + len(last)), 6), layout='constrained')
    axes = figure.subplots(2, 1 + len(last))
    figure.suptitle('tau: tokens after which 1/e of a state is left (last block of each stage)')
    axes[0, 0].imshow(image)
    axes[0, 0].set_title('image as the model sees it')
    axes[1, 0].axis('off')
    for panel in axes[0]:
        panel.set(xticks=[], yticks=[])
    for (top, bottom), i in zip(axes[:, 1:].T, last, strict=True):
        (paths, tau), (stage, block, *_) = memories[i], rows[i]
        shown = top.imshow(tau.clamp(min=1e-2).log().mean((2, 3)).exp().numpy(), cmap='viridis')
        figure.colorbar(shown, ax=top, shrink=0.8, format='%.4g')
        top.set_title(f'stage {stage}, block {block}')
        draw_histogram(bottom, paths, tau.numpy())
    axes[1, 0].legend(*bottom.get_legend_handles_labels(), loc='center', title='scan path')
    return figure


def draw_histogram(panel, paths: tuple[str, ...], tau: np.ndarray) -> None:
    """Histogram of tau for each path, beside the tokens of a line and the map; linear where one peak is."""
    height, width = tau.shape[:2]
    lines = lines_of(paths, height, width)
    low, high = np.quantile(tau, (0.01, 0.99))
    linear = high < LINEAR * low
    ends = (0.8 * low, 1.2 * high) if linear else (low / 2, 2 * max(high, *lines.values()))
    bins = (np.linspace if linear else np.geomspace)(*ends, 49)
    for p, path in enumerate(paths):
        style = ('-', '--', ':', '-.')[p % 4]
        panel.hist(tau[:, :, p].ravel(), bins, label=path, histtype='step', color=f'C{p}', linestyle=style)
    panel.set(yticks=[], xlabel='tau / tokens', xlim=(bins[0], bins[-1]))
    if not linear:
        panel.set_xscale('log')
        panel.xaxis.set_minor_formatter(NullFormatter())
    lengths = lines | dict(map=height * width)
    # A row and a column may be as long: their names are on either side.
    for (name, length), side in zip(lengths.items(), ('right', 'left', 'left'), strict=False):
        if bins[0] < length < bins[-1]:
            panel.axvline(length, color='tab:red', linewidth=1)
            style = dict(rotation=90, va='top', ha=side, color='tab:red')
            panel.annotate(f' {name}: {length} ', (length, 0.97), xycoords=('data', 'axes fraction'), **style)


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_backbone_options(parser)
    parser.add_argument(
        '--out', type=stem, default='work_dirs/gate_memory', help='write OUT.png, OUT.pdf and OUT.csv'
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Run one image, then draw."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        backbone, (image,), (shown,) = backbone_and_images(args, 1)
        memories = gate_memories(backbone, image)
        check_figure(args.out)
        rows = summarise(memories, backbone.depths)
        table = [[f'{value:.4g}' if isinstance(value, float) else value for value in row] for row in rows]
        written = save_figure(draw(shown, memories, rows), [HEAD, *table], args.out)
    for (paths, _), (stage, block, height, width, _, median, _, longer) in zip(memories, rows, strict=True):
        lines = ' or '.join(f'a {kind} of {n}' for kind, n in lines_of(paths, height, width).items())
        share = f'{longer:.0%} above {lines}'
        print(f'stage {stage}, block {block}: tau {median:.3g} tokens in the median, {share}')
    print(f'seen at {image.shape[3]} x {image.shape[2]}: {written}')


if __name__ == '__main__':
    main()
