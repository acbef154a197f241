"""Options that the command lines of the scripts share, and how the scripts end with an error."""

import os
import re
import sys
import time
import traceback
from argparse import ArgumentError, ArgumentParser, ArgumentTypeError
from contextlib import contextmanager

from mmengine.config import DictAction
from mmengine.utils import apply_to

from mmvisiongru.errors import InputError

# Spaces inside a value, not those around the items of a list. DictAction drops all of them.
INNER_SPACES = re.compile(r'(?<=[^\s,(\[=]) +(?=[^\s,)\]])')
MARK = '\0'


class SettingsAction(DictAction):
    """KEY=VALUE settings; what cannot be read is an error of the command line."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            marked = [INNER_SPACES.sub(lambda found: MARK * len(found[0]), value) for value in values]
            super().__call__(parser, namespace, marked, option_string)
        except (AssertionError, ValueError) as error:
            raise ArgumentError(self, f'must be KEY=VALUE, got {" ".join(values)}') from error
        found = getattr(namespace, self.dest)
        found = apply_to(found, lambda x: isinstance(x, str), lambda x: x.replace(MARK, ' '))
        setattr(namespace, self.dest, found)


def at_least_one(text: str) -> int:
    """A number of the command line."""
    if (number := int(text)) < 1:
        raise ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def add_config_options(parser: ArgumentParser) -> None:
    """Add the config, settings over it, and ``--debug``."""
    parser.add_argument('config', help='config file, or the name of a config of mmvisiongru')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=SettingsAction,
        help='override settings of the config with KEY=VALUE; a list is KEY=a,b or KEY="[a,b]", '
        'a nested one KEY="[(a,b),(c,d)]"',
    )
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def add_common_options(parser: ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/CONFIG)')
    parser.add_argument('--amp', action='store_true', help='mixed precision (bfloat16 without a GPU)')
    parser.add_argument('--no-pin-memory', action='store_true', help='turn pin_memory off')
    parser.add_argument('--no-persistent-workers', action='store_true', help='turn persistent_workers off')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help="how the processes are started (default: the config's `launcher`, else none)",
    )
    # torch.distributed.launch passes it; torchrun sets the variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, help='set by the launcher')


@contextmanager
def one_line_errors(debug: bool = False):
    """End the program with exit code 2 and one line on stderr, after the traceback if ``debug``.

    All processes of a run meet the same error. The first of each node prints it, and the launcher ends the
    others. They wait for that; if nothing ends them the error was theirs, and they print it.
    """
    try:
        yield
    except InputError as error:
        if (os.environ.get('LOCAL_RANK') or os.environ.get('SLURM_LOCALID') or '0') != '0':
            time.sleep(20)
        if debug:
            traceback.print_exception(error)
        # An error in a worker of a data loader comes with the worker's stack in front.
        message = str(error).split(f'{InputError.__module__}.{InputError.__name__}: ')[-1]
        print('error:', ' '.join(message.split()), file=sys.stderr)
        sys.exit(2)
