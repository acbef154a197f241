"""Parameters and multiply-accumulates of a classifier, a segmentor or a backbone.

    python tools/analysis_tools/get_flops.py configs/classification/visiongru-tiny_8xb128_in1k.py \
        --shape 224 --shape 1248
    python tools/analysis_tools/get_flops.py deit-small_4xb256_in1k --shape 1248
    python tools/analysis_tools/get_flops.py mmpretrain.ConvNeXt:tiny --shape 512 1024

FLOPs are multiply-accumulates, as in the paper; mmvisiongru/flops.py says what is counted. Nothing
is computed, so any size takes seconds. Where the cost is linear, the MACs per pixel stay the same.
"""

import argparse
import json
from logging import ERROR

from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from mmvisiongru.errors import InputError
from mmvisiongru.flops import count
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.zoo import build_model, image_size

KINDS = ('convolution', 'linear', 'attention', 'scan')


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'model', help='config file, model name of mmpretrain or mmseg, or backbone (SCOPE.TYPE:ARCH)'
    )
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        action='append',
        metavar=('H', 'W'),
        help='size of the image, W = H if left out; may be given again (default: that of the config)',
    )
    parser.add_argument('--json', metavar='FILE', help='write the counts to this file')
    return parser.parse_args(argv)


def check_shapes(shapes: list[list[int]]) -> list[tuple[int, int]]:
    """Sizes as (H, W)."""
    for shape in shapes:
        if len(shape) > 2 or min(shape) < 1:
            raise InputError(f'--shape takes one or two positive numbers, got {" ".join(map(str, shape))}')
    return [(shape[0], shape[-1]) for shape in shapes]


def print_table(rows: list[dict]) -> None:
    """Print one row a size."""
    console = Console()
    console.print(f'{rows[0]["model"]}: {rows[0]["parameters"] / 1e6:.2f} M parameters')
    table = Table('image', 'GMACs', *KINDS, 'kMACs / pixel')
    for row in rows:
        height, width = row['shape']
        parts = [row.get(f'macs_{kind}', 0) / 1e9 for kind in KINDS]
        cells = [f'{value:.2f}' for value in (row['macs'] / 1e9, *parts)]
        table.add_row(f'{height} x {width}', *cells, f'{row["macs"] / height / width / 1e3:.2f}')
    console.print(table)
    console.print('FLOPs are multiply-accumulates (MACs), as in the paper; twice as many operations.')


def main(argv=None):
    """Count, print, and write what was asked for."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    with one_line_errors():
        model = build_model(args.model).to('meta')
        shapes = check_shapes(args.shape) if args.shape else [image_size(args.model)]
    rows = [dict(model=args.model, shape=shape, **count(model, shape)) for shape in shapes]
    print_table(rows)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(dict(convention='multiply-accumulates', rows=rows), file, indent=1)


if __name__ == '__main__':
    main()
