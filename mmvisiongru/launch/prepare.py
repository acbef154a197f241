"""From a command line to a checked Runner: the one order that every script keeps.

1. Read the config with the settings of the command line, then what else the command line says.
2. Check what the config says: names of settings, of top-level keys.
3. Check what it names on this machine: work dir, data, checkpoint.
4. Join the other processes of the run.
5. Build the Runner, its loops, optimizer and schedules. What cannot be built names its place in the config.
6. Compare the checkpoint with the model.

Each step only needs those before it, the cheap ones come first, and none is left for iteration 1.
"""

import logging
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmvisiongru.checkpoint import (
    Checkpoint,
    check_weights,
    find_checkpoint,
    read_checkpoint,
    refuse_pickled_code,
)
from mmvisiongru.config import get_config
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder
from mmvisiongru.launch.classes import check_classes
from mmvisiongru.launch.data import check_data
from mmvisiongru.launch.names import check_names, unmatched_custom_keys
from mmvisiongru.launch.places import explain
from mmvisiongru.launch.processes import prepare_launch
from mmvisiongru.launch.quiet import import_quietly
from mmvisiongru.launch.shapes import check_shapes
from mmvisiongru.launch.trial import check_schedule

# Top-level keys without which a config is for something else.
TRAINING = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
TESTING = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
# Dataloaders that training goes through.
TRAINING_DATA = ('train_dataloader', 'val_dataloader')

Merge = Callable[[Config, Namespace], None]


def read_config(args: Namespace, required: Iterable[str] = (), merge: Merge | None = None) -> Config:
    """Read ``args.config`` with ``args.cfg_options``, let ``merge`` add the rest of the command line.

    Raises:
        InputError: As :func:`mmvisiongru.config.get_config`.
    """
    refuse_pickled_code()
    cfg = get_config(args.config, args.cfg_options, required)
    import_quietly(cfg.get('default_scope'))
    if merge:
        merge(cfg, args)
    return cfg


def check_config(cfg: Config, dataloaders: Iterable[str] = ()) -> None:
    """Check what the config says, and the folders of the data that the script will read.

    Raises:
        InputError: Something cannot be used.
    """
    check_names(cfg)
    check_classes(cfg, dataloaders)
    check_data(cfg, dataloaders)


def prepare_config(
    args: Namespace,
    required: Iterable[str] = (),
    dataloaders: Iterable[str] = (),
    merge: Merge | None = None,
) -> Config:
    """Read and check a config, for scripts that need no Runner."""
    cfg = read_config(args, required, merge)
    check_config(cfg, dataloaders)
    return cfg


def prepare_training(args: Namespace, merge: Merge) -> Runner:
    """Give the Runner of a training, whose next step is ``train()``.

    Args:
        args (Namespace): With ``config``, ``cfg_options`` and ``resume``: a path, 'auto' or None.
        merge (Callable): Merges the rest of the command line into the config.

    Raises:
        InputError: Something cannot be used; nothing was trained.
    """
    cfg = prepare_config(args, TRAINING, TRAINING_DATA, merge)
    check_folder(cfg.work_dir)
    checkpoint, notes = find_resume(cfg, args.resume)
    if checkpoint is None and cfg.get('load_from'):
        checkpoint = read_checkpoint(cfg.load_from)
    notes += prepare_launch(cfg)
    with building(cfg):
        runner = build_runner(cfg)
        notes += _build_training(runner)
    check_shapes(cfg, runner.model, runner.world_size)
    if checkpoint:
        coverage = None if cfg.resume else cfg.get('load_coverage', 1.0)
        unfit = check_weights(runner.model, checkpoint, coverage)
        runner.loaded = checkpoint
        notes += [f'of {cfg.load_from}, not loaded: {line}' for line in unfit]
    for note in [*notes, *unmatched_custom_keys(cfg, runner.model)]:
        runner.logger.warning(note)
    return runner


def prepare_test(args: Namespace, merge: Merge) -> Runner:
    """Give the Runner of a test, whose next step is ``test()``.

    Args:
        args (Namespace): With ``config``, ``cfg_options`` and ``checkpoint``.
        merge (Callable): Merges the rest of the command line into the config.

    Raises:
        InputError: Something cannot be used.
    """
    cfg = prepare_config(args, TESTING, ('test_dataloader',), merge)
    check_folder(cfg.work_dir)
    cfg.load_from, cfg.resume = args.checkpoint, False
    checkpoint = read_checkpoint(args.checkpoint)
    notes = prepare_launch(cfg)
    with building(cfg):
        runner = build_runner(cfg)
        # Only to be built: it stays with the Runner.
        _ = runner.test_loop
    check_shapes(cfg, runner.model)
    check_weights(runner.model, checkpoint)
    runner.loaded = checkpoint
    for note in notes:
        runner.logger.warning(note)
    return runner


def find_resume(cfg: Config, resume: str | None) -> tuple[Checkpoint | None, list[str]]:
    """Decide which checkpoint to resume, if any. Returns it and what to log."""
    path, notes = resume or (cfg.get('resume') and (cfg.get('load_from') or 'auto')), []
    cfg.resume = False
    if not path:
        return None, []
    if path != 'auto':
        checkpoint = read_checkpoint(path, resume=True)
    else:
        checkpoint, notes = find_checkpoint(cfg.work_dir)
        if notes and not checkpoint:
            raise InputError(f'no complete checkpoint in {cfg.work_dir}; move away what was {notes[0]}')
        if not checkpoint:
            return None, [f'nothing to resume in {cfg.work_dir}; training starts afresh']
    cfg.resume, cfg.load_from = True, checkpoint.path
    return checkpoint, notes


@contextmanager
def building(cfg: Config) -> Iterator[None]:
    """Turn what goes wrong while a part of the config is built into one line with its place there.

    The traceback goes to the log file of the run, if there is one by then.

    Raises:
        InputError: Anything was raised.
    """
    try:
        yield
    except InputError:
        raise
    # What the config names is code of anybody, and fails in any way.
    except Exception as error:
        line = explain(error, cfg)
        _log_traceback(f'{line}\n{"".join(traceback.format_exception(error))}')
        raise InputError(line) from error


def _log_traceback(text: str) -> None:
    logger = MMLogger.get_current_instance()
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logger.handlers:
        # On the screen it is one line.
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, or the one that ``runner_type`` names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _build_training(runner: Runner) -> list[str]:
    """Build what ``Runner.train`` would build, in its order; it finds it and goes on. Returns what to log."""
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    # Once: a lr that is scaled must not be scaled again.
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    runner.auto_scale_lr = None
    # Here, as only the data set knows how many iterations an epoch has.
    notes = check_schedule(runner.cfg, runner.max_iters, runner.max_epochs)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    if runner._val_loop is not None:
        runner._val_loop = runner.build_val_loop(runner._val_loop)
    return notes
