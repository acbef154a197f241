"""Train a classifier (mmpretrain) or a segmentor (mmseg) from a config.

python tools/train.py configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py
tools/dist_train.sh CONFIG GPUS [OPTIONS]
"""

import argparse

from mmengine.config import Config

from mmvisiongru.config import get_config
from mmvisiongru.engine.resume import CHOICES
from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import (
    add_common_options,
    add_config_options,
    at_least_one,
    merge_common_options,
    one_line_errors,
)
from mmvisiongru.launch.prepare import TRAINING, prepare_training
from mmvisiongru.launch.processes import has_gpu

AMP_WRAPPERS = ('AmpOptimWrapper', 'mmvisiongru.CPUAmpOptimWrapper')


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
        choices=CHOICES,
        help="where a run is resumed to another length: go on with the checkpoint's schedule, or with the "
        "config's, as if the run had had its length from the start",
    )
    start.add_argument(
        '--trial',
        type=at_least_one,
        metavar='N',
        help='train N iterations (or epochs, if the config counts those) in WORK_DIR_trial, with schedule, '
        'intervals and workers to match',
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale lr by the global batch over auto_scale_lr.base_batch_size of the config',
    )
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='turn persistent_workers off in every dataloader',
    )
    add_common_options(parser)
    return parser.parse_args(argv)


def merge_args(cfg: Config, args) -> None:
    """Merge the command line into the config."""
    merge_common_options(cfg, args)
    if args.trial:
        # Not where the real run would find a checkpoint to resume.
        cfg.work_dir = args.work_dir or f'{cfg.work_dir.rstrip("/")}_trial'
    if args.schedule:
        cfg.resume_schedule = args.schedule
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.no_persistent_workers:
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name):
                cfg[name].persistent_workers = False
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise InputError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size, not in {args.config}')
        cfg.auto_scale_lr.enable = True
    merge_amp(cfg, args.amp)


def merge_amp(cfg: Config, amp: bool) -> None:
    """Turn mixed precision on if asked; where there is no GPU, the CPU's takes the place of mmengine's."""
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if amp and kind == 'OptimWrapper':
        wrapper.type = kind = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if amp and kind not in AMP_WRAPPERS:
        raise InputError(f'--amp replaces an OptimWrapper, the config has {kind}')
    if kind == 'AmpOptimWrapper' and not has_gpu():
        wrapper.type = 'mmvisiongru.CPUAmpOptimWrapper'


def main(argv=None):
    """Train."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        cfg = get_config(args.config, args.cfg_options, TRAINING)
        merge_args(cfg, args)
        prepare_training(cfg, args.resume, args.trial).train()


if __name__ == '__main__':
    main()
