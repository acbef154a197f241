"""From a command line to a checked Runner, in the one order of all scripts: cheap checks come first."""

import logging
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmvisiongru.checkpoint import check_file, refuse_pickled_code
from mmvisiongru.config import DATALOADERS, get_config, parts, type_name
from mmvisiongru.errors import InputError, did_you_mean, in_one_line
from mmvisiongru.files import check_folder
from mmvisiongru.launch.checks import check_config
from mmvisiongru.launch.model_checks import check_built
from mmvisiongru.launch.processes import has_gpu, prepare_launch
from mmvisiongru.launch.schedule import build_schedule

# Top-level keys without which a config is for something else.
TRAINING = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
TESTING = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
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
    merge_common_options(cfg, args)
    wrapper = cfg.optim_wrapper
    if args.amp and type_name(wrapper) in ('', 'OptimWrapper'):
        wrapper.type = 'AmpOptimWrapper'
    elif args.amp and type_name(wrapper) not in ('AmpOptimWrapper', 'CPUAmpOptimWrapper'):
        raise InputError(f'--amp replaces an OptimWrapper, the config has {wrapper.type}')
    prepare_training(cfg, shorten(cfg, args) if args.trial else None).train()


def merge_common_options(cfg: Config, args: Namespace) -> None:
    """Merge the options that training and testing share into a config; the command line wins."""
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(cfg.filename).stem}'
    cfg.launcher = args.launcher or cfg.get('launcher', 'none')
    for loader in filter(None, map(cfg.get, DATALOADERS)):
        if args.no_pin_memory:
            loader.pin_memory = False
        # Torch refuses to keep workers when there are none.
        if args.no_persistent_workers or loader.get('num_workers') == 0:
            loader.persistent_workers = False


def shorten(cfg: Config, args: Namespace) -> float:
    """Make a trial, in iterations or epochs as in the config. Returns its length over that of the run."""
    # In a folder of its own: the run must not find the trial's checkpoint to resume.
    cfg.work_dir = args.work_dir or f'{cfg.work_dir.rstrip("/")}_trial'
    by_epoch, length = bool(cfg.train_cfg.get('max_epochs')), args.trial
    unit = 'max_epochs' if by_epoch else 'max_iters'
    if not isinstance(before := cfg.train_cfg.get(unit), int):
        raise InputError(f'--trial needs a number in train_cfg.max_iters or max_epochs of {args.config}')
    cfg.train_cfg.update({unit: length, 'val_interval': min(cfg.train_cfg.get('val_interval', 1), length)})
    for _, node in parts(cfg, 'train_cfg', 'default_hooks', 'custom_hooks'):
        for key in ('dynamic_intervals', 'val_begin', 'save_begin', 'begin_epoch', 'begin_iter'):
            node.pop(key, None)
    hooks = cfg.get('default_hooks') or {}
    saving, logger = hooks.get('checkpoint'), hooks.get('logger')
    if saving and saving.get('by_epoch', True) == by_epoch:
        saving.interval = min(saving.get('interval', length), length)
    if logger and not by_epoch:
        logger.interval = min(logger.get('interval', 10), max(1, length // 10))
    return length / before


def prepare_training(cfg: Config, trial: float | None = None) -> Runner:
    """Get the Runner of a training. ``trial``: its length over that of the run that the schedule is for."""
    return _prepare(cfg, TRAINING_DATA, trial)


def prepare_test(cfg: Config, checkpoint: str) -> Runner:
    """Get the Runner of a test of a checkpoint."""
    cfg.load_from, cfg.resume = checkpoint, False
    return _prepare(cfg, ('test_dataloader',))


def _prepare(cfg: Config, dataloaders: Iterable[str], trial: float | None = None) -> Runner:
    check_config(cfg, dataloaders)
    wrapper = cfg.optim_wrapper if 'train_dataloader' in dataloaders else {}
    amp = 'Amp' in type_name(wrapper) if wrapper else (cfg.get('test_cfg') or {}).get('fp16')
    rounded = not has_gpu() or 'bfloat16' in str(wrapper.get('dtype'))
    if amp and rounded and cfg.get('default_scope') == 'mmdet':
        raise InputError('mmdet needs float32, or float16 on a GPU: bfloat16 moves boxes by several pixels')
    refuse_pickled_code()
    if cfg.get('load_from') and cfg.get('resume') != 'auto':
        check_file(cfg.load_from)
    check_folder(cfg.work_dir)
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
        # The terminal gets the line alone, and a process without a file leaves that of another one alone.
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
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    # Otherwise mmengine would scale the lr a second time.
    runner.auto_scale_lr = None
