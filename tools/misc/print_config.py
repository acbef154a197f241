"""Print a config with all it inherits, checked as the training script checks it.

python tools/misc/print_config.py configs/segmentation/visiongru-tiny_upernet_8xb2-80k_ade20k-512x512.py
"""

import argparse

from mmengine.config import DictAction
from rich.console import Console
from rich.syntax import Syntax

from mmvisiongru.launch.config import load_config
from mmvisiongru.launch.options import one_line_errors


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='settings over it, KEY=VALUE')
    return parser.parse_args(argv)


def main(argv=None):
    """Print; with colours on a terminal, as plain Python into a pipe."""
    args = parse_args(argv)
    with one_line_errors():
        text = load_config(args.config, args.cfg_options).pretty_text
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text, 'python'))
    else:
        print(text)


if __name__ == '__main__':
    main()
