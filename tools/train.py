"""Train a classifier (mmpretrain) or a segmentor (mmseg) from a config.

python tools/train.py configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py
tools/dist_train.sh CONFIG GPUS [OPTIONS]
"""

import argparse

from mmvisiongru.launch.options import add_common_options, add_config_options, at_least_one, one_line_errors
from mmvisiongru.launch.prepare import train


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Train a classifier or a segmentor.')
    add_config_options(parser)
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from this checkpoint; without PATH, from the latest one in the work dir',
    )
    parser.add_argument(
        '--schedule',
        choices=('checkpoint', 'config'),
        help='what a resumed run follows where lr, weight decay or schedule differ (default: the checkpoint, '
        'with a warning; for another length, one must be chosen)',
    )
    start.add_argument(
        '--trial',
        type=at_least_one,
        metavar='N',
        help='train N iterations (or epochs, if the config counts those) in WORK_DIR_trial or --work-dir, '
        'with schedule and intervals to match',
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale lr by the global batch over auto_scale_lr.base_batch_size of the config',
    )
    add_common_options(parser)
    args = parser.parse_args(argv)
    args.cfg_options = {**(args.cfg_options or {}), **settings(args)}
    return args


def settings(args) -> dict:
    """The options that are settings of the config, whatever it says."""
    found = {}
    if args.resume:
        found = dict(resume='auto') if args.resume == 'auto' else dict(resume=True, load_from=args.resume)
    if args.schedule:
        found['resume_schedule'] = args.schedule
    if args.no_validate:
        found |= dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator'))
    if args.auto_scale_lr:
        found['auto_scale_lr.enable'] = True
    return found


def main(argv=None):
    """Train."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        train(args)


if __name__ == '__main__':
    main()
