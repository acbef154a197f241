"""Train a classifier (mmpretrain) or a segmentor (mmseg) from a config.

python tools/train.py configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py
tools/dist_train.sh CONFIG GPUS [OPTIONS]
"""

import argparse

from mmengine.config import Config

from mmvisiongru.checkpoint import check_weights, find_checkpoint, read_weights, refuse_pickled_code
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder
from mmvisiongru.launch.config import check_data, load_config
from mmvisiongru.launch.names import check_names, unmatched_custom_keys
from mmvisiongru.launch.options import (
    add_common_options,
    build_runner,
    merge_common_options,
    one_line_errors,
)
from mmvisiongru.launch.processes import has_gpu, prepare_launch


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Train a classifier or a segmentor.')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='go on from this checkpoint, or without PATH from the latest one in the work dir',
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
    """Turn mixed precision on if asked, and refuse it, asked for or in the config, without a GPU."""
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if amp and kind == 'OptimWrapper':
        wrapper.type = kind = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if amp and kind != 'AmpOptimWrapper':
        raise InputError(f'--amp replaces an OptimWrapper, the config has {kind}')
    if kind == 'AmpOptimWrapper' and not has_gpu():
        source = '--amp' if amp else 'AmpOptimWrapper in the config'
        raise InputError(f'{source} needs a GPU, and none was found; train without it')


def find_resume(cfg: Config, resume: str | None) -> list[str]:
    """Settle which checkpoint to resume, if any. Returns what to log."""
    path, notes = resume or (cfg.get('resume') and (cfg.get('load_from') or 'auto')), []
    if not path:
        return []
    if path == 'auto':
        path, notes = find_checkpoint(cfg.work_dir)
        if notes and not path:
            raise InputError(f'no whole checkpoint in {cfg.work_dir}; move away what was {notes[0]}')
    cfg.resume = path is not None
    if path is None:
        return [f'nothing to resume in {cfg.work_dir}; training starts afresh']
    cfg.load_from = path
    return notes


def main(argv=None):
    """Train."""
    args = parse_args(argv)
    with one_line_errors():
        refuse_pickled_code()
        required = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
        cfg = load_config(args.config, args.cfg_options, required)
        merge_args(cfg, args)
        check_folder(cfg.work_dir)
        notes = find_resume(cfg, args.resume)
        check_data(cfg, ('train_dataloader', 'val_dataloader'))
        check_names(cfg)
        source = cfg.get('load_from')
        weights = read_weights(source, resume=cfg.resume) if source else None

        notes += prepare_launch(cfg)
        runner = build_runner(cfg)
        if weights:
            coverage = None if cfg.resume else cfg.get('load_coverage', 1.0)
            unfit = check_weights(runner.model, weights, source, coverage)
            notes += [f'of {source}, not loaded: {line}' for line in unfit]
        for note in [*notes, *unmatched_custom_keys(cfg, runner.model)]:
            runner.logger.warning(note)
        runner.train()


if __name__ == '__main__':
    main()
