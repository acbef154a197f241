"""From a config to a checked Runner, in the one order that every script keeps: cheap checks come first."""

import logging
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmvisiongru.checkpoint import check_file, refuse_pickled_code
from mmvisiongru.config import get_config
from mmvisiongru.errors import InputError, did_you_mean, in_one_line
from mmvisiongru.files import check_folder, is_local
from mmvisiongru.launch.checks import check_config
from mmvisiongru.launch.merge import merge_training_options
from mmvisiongru.launch.model_checks import check_built
from mmvisiongru.launch.processes import prepare_launch
from mmvisiongru.launch.schedule import build_schedule

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


def train(args: Namespace) -> None:
    """Train as the command line of ``tools/train.py`` says; InputError if something cannot be used."""
    cfg = get_config(args.config, args.cfg_options, TRAINING)
    trial = merge_training_options(cfg, args)
    prepare_training(cfg, trial).train()


def prepare_training(cfg: Config, trial: float | None = None) -> Runner:
    """Get the Runner of a training. ``trial``: its length over that of the run that the schedule is for."""
    return _prepare(cfg, TRAINING_DATA, trial)


def prepare_test(cfg: Config, checkpoint: str) -> Runner:
    """Get the Runner of a test of a checkpoint."""
    cfg.load_from, cfg.resume = checkpoint, False
    return _prepare(cfg, ('test_dataloader',))


def _prepare(cfg: Config, dataloaders: Iterable[str], trial: float | None = None) -> Runner:
    refuse_pickled_code()
    check_config(cfg, dataloaders)
    check_folder(cfg.work_dir)
    path = cfg.get('load_from')
    if path and cfg.get('resume') != 'auto' and is_local(path):
        check_file(path)
    notes = prepare_launch(cfg)
    with building(cfg):
        runner = build_runner(cfg)
        check_built(runner, dataloaders)
        if 'train_dataloader' in dataloaders:
            build_optimizer(runner)
            notes += build_schedule(runner, trial)
    for note in notes:
        runner.logger.warning(note)
    return runner


@contextmanager
def building(cfg: Config) -> Iterator[None]:
    """Turn any exception into an InputError behind the config's path; the traceback goes to the log file."""
    try:
        yield
    except InputError:
        raise
    # What the config names is code of anybody, and fails in any way.
    except Exception as error:
        line = f'{cfg.filename or cfg.model.type}: {in_one_line(error)}'
        logger, trace = MMLogger.get_current_instance(), (type(error), error, error.__traceback__)
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, line, (), trace)
        # The terminal gets the line alone.
        for handler in (h for h in logger.handlers if isinstance(h, logging.FileHandler)):
            handler.emit(record)
        raise InputError(line) from error


def build_runner(cfg: Config) -> Runner:
    """Build the Runner that ``runner_type`` names, ReliableRunner by default."""
    cfg.setdefault('runner_type', 'mmvisiongru.ReliableRunner')
    return RUNNERS.build(cfg)


class _Asked(dict):
    """Settings that note for which of them they are asked, there or not."""

    def __init__(self, settings):
        super().__init__(settings)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
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
