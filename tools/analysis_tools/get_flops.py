"""Parameters and multiply-accumulates of a classifier, segmentor, detector or backbone.

    python tools/analysis_tools/get_flops.py configs/classification/visiongru-tiny_8xb128_in1k.py \
        --shape 224 --shape 1248
    python tools/analysis_tools/get_flops.py deit-small_4xb256_in1k --shape 1248
    python tools/analysis_tools/get_flops.py mmpretrain.ConvNeXt:tiny --shape 512 1024

FLOPs are multiply-accumulates, as in the paper; flops.py beside this file says what is counted. No weight is
multiplied, so any size takes seconds. Where the cost is linear, the MACs per pixel are constant.
"""

import argparse
import json
import sys
from logging import ERROR
from pathlib import Path

from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.errors import InputError
from mmvisiongru.files import write_text
from mmvisiongru.launch.options import SettingsAction, one_line_errors
from mmvisiongru.launch.prepare import building
from mmvisiongru.zoo import build_model, model_config
from tools.analysis_tools.flops import count, image_size

KINDS = ('convolution', 'linear', 'attention', 'scan')


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'model', help='config file or name, model of mmpretrain or mmseg, or backbone (SCOPE.TYPE:ARCH)'
    )
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        action='append',
        metavar=('H', 'W'),
        help='size of the image, W defaults to H; may be given again (default: that of the config)',
    )
    parser.add_argument('--cfg-options', nargs='+', action=SettingsAction, help='settings over the config')
    parser.add_argument('--json', metavar='FILE', help='write the counts to this file')
    return parser.parse_args(argv)


def check_shapes(shapes: list[list[int]]) -> list[tuple[int, int]]:
    """Sizes as (H, W)."""
    for shape in shapes:
        if len(shape) > 2 or min(shape) < 1:
            raise InputError(f'--shape takes one or two positive numbers, got {" ".join(map(str, shape))}')
    return [(shape[0], shape[-1]) for shape in shapes]


def print_table(rows: list[dict]) -> None:
    """Print one row per size."""
    console = Console()
    console.print(f'{rows[0]["model"]}: {digits(rows[0]["parameters"] / 1e6)} M parameters')
    unit, name = (1e9, 'GMACs') if max(row['macs'] for row in rows) >= 1e9 else (1e6, 'MMACs')
    table = Table('image', name, *KINDS, 'kMACs / pixel')
    for row in rows:
        height, width = row['shape']
        values = [row['macs'] / unit, *(row.get(f'macs_{kind}', 0) / unit for kind in KINDS)]
        cells = [digits(value) for value in (*values, row['macs'] / height / width / 1e3)]
        table.add_row(f'{height} x {width}', *cells)
    console.print(table)
    console.print('FLOPs are multiply-accumulates (MACs), as in the paper; twice as many operations.')


def digits(value: float) -> str:
    """A number with two decimals, or with two digits if it is small."""
    return f'{value:.2f}' if value >= 0.1 else f'{value:.2g}'


def main(argv=None):
    """Count, print, and write what was asked for."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    with one_line_errors():
        cfg = model_config(args.model, args.cfg_options)
        model = build_model(cfg).to('meta')
        shapes = check_shapes(args.shape) if args.shape else [image_size(cfg)]
        # A size may be too small for a model.
        with building(cfg):
            rows = [dict(model=args.model, shape=shape, **count(model, shape)) for shape in shapes]
        print_table(rows)
        if args.json:
            write_text(args.json, json.dumps(dict(convention='multiply-accumulates', rows=rows), indent=1))


if __name__ == '__main__':
    main()
