"""From a config to a checked Runner, in the one order that every script keeps: cheap checks come first.

Check the config, its folders and checkpoint; join the processes; build the Runner with its loops; compare the
model, its data and its checkpoint. Nothing is left for iteration 1.
"""

import logging
import traceback
from argparse import Namespace
from collections.abc import Iterable, Iterator
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
from mmvisiongru.errors import InputError, did_you_mean, in_one_line
from mmvisiongru.files import check_folder
from mmvisiongru.launch.checks import check_config
from mmvisiongru.launch.model_checks import check_built
from mmvisiongru.launch.processes import prepare_launch
from mmvisiongru.launch.schedule import build_schedule, shorten

# Top-level keys without which a config is for something else.
TRAINING = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
TESTING = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
# Dataloaders that training goes through.
TRAINING_DATA = ('train_dataloader', 'val_dataloader')


def prepare_config(args: Namespace, required: Iterable[str] = (), dataloaders: Iterable[str] = ()) -> Config:
    """Read and check the config of a command line, for scripts that need no Runner."""
    refuse_pickled_code()
    cfg = get_config(args.config, args.cfg_options, required)
    check_config(cfg, dataloaders)
    return cfg


def prepare_training(cfg: Config, resume: str | None = None, trial: int | None = None) -> Runner:
    """Give the Runner of a training, whose next step is ``train()``.

    Args:
        cfg (Config): With all that the command line says.
        resume (str, optional): A checkpoint to resume, or 'auto' for the latest in the work dir.
        trial (int, optional): Train this many iterations or epochs, with the schedule in proportion.

    Raises:
        InputError: Something cannot be used.
    """
    refuse_pickled_code()
    check_config(cfg, TRAINING_DATA)
    before = shorten(cfg, trial) if trial else None
    check_folder(cfg.work_dir)
    checkpoint, notes = find_resume(cfg, resume)
    if checkpoint is None and cfg.get('load_from'):
        checkpoint = read_checkpoint(cfg.load_from)
    notes += prepare_launch(cfg)
    with building(cfg):
        runner = build_runner(cfg)
        check_built(runner, dict(train_dataloader=runner.train_loop, val_dataloader=runner.val_loop))
        build_optimizer(runner)
        notes += build_schedule(runner, before)
    if checkpoint:
        coverage = None if cfg.resume else cfg.get('load_coverage', 1.0)
        unfit = check_weights(runner.model, checkpoint, coverage, '' if cfg.resume else 'load_from')
        runner.loaded = checkpoint
        notes += [f'of {cfg.load_from}, not loaded: {line}' for line in unfit]
    for note in notes:
        runner.logger.warning(note)
    return runner


def prepare_test(cfg: Config, checkpoint: str) -> Runner:
    """Give the Runner of a test of a checkpoint, whose next step is ``test()``."""
    refuse_pickled_code()
    check_config(cfg, ('test_dataloader',))
    check_folder(cfg.work_dir)
    cfg.load_from, cfg.resume = checkpoint, False
    loaded = read_checkpoint(checkpoint)
    notes = prepare_launch(cfg)
    with building(cfg):
        runner = build_runner(cfg)
        check_built(runner, dict(test_dataloader=runner.test_loop))
    check_weights(runner.model, loaded)
    runner.loaded = loaded
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
    """Turn any exception while a part of the config is built into an InputError behind the config's path.

    The traceback goes to the log file of the run, if there is one by then.
    """
    try:
        yield
    except InputError:
        raise
    # What the config names is code of anybody, and fails in any way.
    except Exception as error:
        line = f'{cfg.filename or cfg.model.type}: {in_one_line(error)}'
        # An empty list of samples, in mmengine's BaseDataset.
        if 'need at least one array to concatenate' in line:
            line += ' (a data set without samples: check its data_prefix, suffixes and ann_file)'
        logger, text = MMLogger.get_current_instance(), ''.join(traceback.format_exception(error))
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, f'{line}\n{text}', (), None)
        # The terminal gets the line alone.
        for handler in (h for h in logger.handlers if isinstance(h, logging.FileHandler)):
            handler.emit(record)
        raise InputError(line) from error


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, or the one that ``runner_type`` names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


class _Asked(dict):
    """Settings that remember which of them were asked for, there or not."""

    asked = frozenset()

    def get(self, key, default=None):
        self.asked |= {key}
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked |= {key}
        return super().__getitem__(key)

    def __deepcopy__(self, memo):
        return self


def build_optimizer(runner: Runner) -> None:
    """Build the optimizer of a Runner; refuse ``paramwise_cfg`` that its constructor does not ask for."""
    paramwise = _Asked(runner.optim_wrapper.get('paramwise_cfg') or {})
    settings = dict(runner.optim_wrapper, **(dict(paramwise_cfg=paramwise) if paramwise else {}))
    runner.optim_wrapper = runner.build_optim_wrapper(settings)
    for key in set(paramwise) - paramwise.asked:
        hint = did_you_mean(key, paramwise.asked, cutoff=0.75) or '; does another constructor?'
        raise InputError(f'nothing reads optim_wrapper.paramwise_cfg.{key} in {runner.cfg.filename}{hint}')
    # Once: a lr that is scaled must not be scaled again.
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    runner.auto_scale_lr = None
