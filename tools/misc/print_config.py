"""Print a config with all it inherits, then check it as the training script does, with its model built.

    python tools/misc/print_config.py configs/segmentation/visiongru-tiny_upernet_8xb2-80k_ade20k-512x512.py

If training would refuse the config, or data is missing, one line says so and the exit code is 2.
"""

import argparse
import sys
from collections.abc import Sequence

from mmengine.config import Config
from rich.console import Console
from rich.syntax import Syntax

from mmvisiongru.config import check_required, get_config
from mmvisiongru.launch.checks import check_config
from mmvisiongru.launch.model_checks import check_labels, check_model, heads
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import TESTING, TRAINING, TRAINING_DATA
from mmvisiongru.zoo import build_model, lazy_dataset


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Print; with colours on a terminal, as plain Python into a pipe. Then check."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        cfg = get_config(args.config, args.cfg_options)
        # A terminal may know fewer characters than a config has.
        sys.stdout.reconfigure(errors='backslashreplace')
        console = Console()
        if console.is_terminal:
            console.print(Syntax(cfg.pretty_text, 'python'))
        else:
            print(cfg.pretty_text)
        if cfg.get('train_dataloader'):
            check(cfg, TRAINING, TRAINING_DATA)
        elif cfg.get('test_dataloader'):
            check(cfg, TESTING, ('test_dataloader',))


def check(cfg: Config, required: Sequence[str], dataloaders: Sequence[str]) -> None:
    """Check a config as the script that runs it does before it starts."""
    check_required(cfg, required)
    check_config(cfg, dataloaders)
    model = build_model(cfg)
    check_model(cfg, model)
    check_labels(
        cfg, dict(heads(cfg, model)), {f'{key}.dataset': lazy_dataset(cfg, key) for key in dataloaders}
    )


if __name__ == '__main__':
    main()
