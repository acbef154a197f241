"""Merge the command line into a config."""

import os.path as osp
from argparse import Namespace

from mmengine.config import Config

from mmvisiongru.errors import InputError

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def merge_common_options(cfg: Config, args: Namespace) -> None:
    """Merge the options that training and testing share; the command line wins."""
    if args.work_dir or not cfg.get('work_dir'):
        stem = osp.splitext(osp.basename(cfg.filename))[0]
        cfg.work_dir = args.work_dir or osp.join('./work_dirs', stem)
    if args.launcher:
        cfg.launcher = args.launcher
    for loader in filter(None, map(cfg.get, LOADERS)):
        if args.no_pin_memory:
            loader.pin_memory = False
        # Torch refuses to keep workers when there are none.
        if loader.get('num_workers') == 0:
            loader.persistent_workers = False


def merge_training_options(cfg: Config, args: Namespace) -> float | None:
    """Merge those options of training that depend on the config. Returns what :func:`shorten` does."""
    merge_common_options(cfg, args)
    for loader in filter(None, map(cfg.get, LOADERS)) if args.no_persistent_workers else ():
        loader.persistent_workers = False
    wrapper = cfg.optim_wrapper
    if args.amp and wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    elif args.amp and wrapper.type not in ('AmpOptimWrapper', 'mmvisiongru.CPUAmpOptimWrapper'):
        raise InputError(f'--amp replaces an OptimWrapper, the config has {wrapper.type}')
    return shorten(cfg, args) if args.trial else None


def shorten(cfg: Config, args: Namespace) -> float:
    """Make a trial, in iterations or epochs as in the config. Returns its length over that of the run."""
    # Not where the run would find a checkpoint to resume.
    cfg.work_dir = args.work_dir or f'{cfg.work_dir.rstrip("/")}_trial'
    by_epoch, length = bool(cfg.train_cfg.get('max_epochs')), args.trial
    unit = 'max_epochs' if by_epoch else 'max_iters'
    if not isinstance(before := cfg.train_cfg.get(unit), int):
        raise InputError(f'--trial needs a number in train_cfg.max_iters or max_epochs of {args.config}')
    cfg.train_cfg.update({unit: length, 'val_interval': min(cfg.train_cfg.get('val_interval', 1), length)})
    for key in ('dynamic_intervals', 'val_begin'):
        cfg.train_cfg.pop(key, None)
    hooks = cfg.get('default_hooks') or {}
    saving, logger = hooks.get('checkpoint'), hooks.get('logger')
    if saving and saving.get('by_epoch', True) == by_epoch:
        saving.interval = min(saving.get('interval', length), length)
        saving.pop('save_begin', None)
    if logger and not by_epoch:
        logger.interval = min(logger.get('interval', 10), max(1, length // 10))
    return length / before
