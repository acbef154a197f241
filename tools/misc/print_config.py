"""Print a config with all it inherits, then check it as the training script does before it builds anything.

    python tools/misc/print_config.py configs/segmentation/visiongru-tiny_upernet_8xb2-80k_ade20k-512x512.py

If training would refuse the config, or data is missing, one line says so and the exit code is 2.
"""

import argparse
import sys

from rich.console import Console
from rich.syntax import Syntax

from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import TRAINING_DATA, check_config, read_config


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Print; with colours on a terminal, as plain Python into a pipe. Then check."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        cfg = read_config(args)
        # A terminal may know fewer characters than a config has.
        sys.stdout.reconfigure(errors='backslashreplace')
        console = Console()
        if console.is_terminal:
            console.print(Syntax(cfg.pretty_text, 'python'))
        else:
            print(cfg.pretty_text)
        check_config(cfg, TRAINING_DATA)


if __name__ == '__main__':
    main()
