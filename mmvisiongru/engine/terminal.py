"""What a run says on the terminal: a summary at its start, and not what holds in every run."""

import logging

import torch
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from mmengine.logging.logger import MMFormatter
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from mmvisiongru.engine.optim import all_schedulers, single_wrappers
from mmvisiongru.ops.backends import Backends

# Beginnings of messages that the log file is enough for.
FILE_ONLY = (
    '\n------------------------------------------------------------\nSystem environment:',
    'Config:\n',
    'Hooks will be executed in the following order:',
    'Distributed training is not used, all SyncBatchNorm',
    'paramwise_options -- ',
    'The prefix is not set in metric class',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'Checkpoints will be saved to',
    'Exp name: ',
    '`save_param_scheduler` is True but',
)


def calm(logger: MMLogger) -> None:
    """Keep what holds in every run off the terminal, and the place in the logger's own code out of errors."""
    for handler in logger.handlers:
        if isinstance(handler.formatter, MMFormatter):
            # The caller is print_log of mmengine, whatever was wrong.
            handler.formatter.err_format = handler.formatter.err_format.replace(
                '%(pathname)s - %(funcName)s - %(lineno)d - ', ''
            )
        if not isinstance(handler, logging.FileHandler) and for_terminal not in handler.filters:
            handler.addFilter(for_terminal)


def for_terminal(record: logging.LogRecord) -> bool:
    """Whether a message is of this run."""
    return not record.getMessage().startswith(FILE_ONLY)


def summary(runner: Runner) -> list[str]:
    """Model, parameters, data, schedule, device, backends and work dir of a run whose loops are built."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    parts = ', '.join(
        type(part).__name__ for part in model.children() if next(part.parameters(), None) is not None
    )
    total, trained = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    frozen = '' if trained == total else f', {trained / 1e6:.2f} M of them trained'
    lines = [f'model: {type(model).__name__} ({parts}), {total / 1e6:.2f} M parameters{frozen}']
    loops = dict(train=runner._train_loop, validation=runner._val_loop, test=runner._test_loop)
    for name, loop in loops.items():
        if isinstance(loop, BaseLoop):
            loader = loop.dataloader
            lines.append(
                f'{name} data: {len(loader.dataset)} samples, {loader.batch_size} a process, '
                f'{loader.num_workers} workers'
            )
    if isinstance(runner._train_loop, BaseLoop) and isinstance(runner.optim_wrapper, OptimWrapper):
        lines.append(_schedule(runner))
        if isinstance(runner._val_loop, BaseLoop):
            # A bad one would end the run there, hours after its start.
            lines.append(
                'validation labels: first read at the first validation; to check them before, run '
                f'tools/misc/verify_dataset.py {runner.cfg.filename or "CONFIG"} --dataloaders val_dataloader'
            )
    weight = next(model.parameters(), None)
    kind = torch.cuda.get_device_name(weight.device) if weight is not None and weight.is_cuda else 'cpu'
    lines.append(f'device: {get_world_size()} x {kind}, threads: {torch.get_num_threads()}')
    lines += _backends(runner, model, weight)
    return [*lines, f'work dir: {runner.work_dir}, log file: {runner.logger.log_file}']


def _schedule(runner: Runner) -> str:
    by_epoch = isinstance(runner._train_loop, EpochBasedTrainLoop)
    length = (
        f'{runner.max_epochs} epochs of {len(runner._train_loop.dataloader)}'
        if by_epoch
        else runner.max_iters
    )
    parts = [f'schedule: {length} iterations']
    for optimizer in (w.optimizer for w in single_wrappers(runner.optim_wrapper)):
        rate = max(g.get('initial_lr', g['lr']) for g in optimizer.param_groups)
        parts.append(f'{type(optimizer).__name__}, lr {rate:g}')
    parts += [
        f'{type(s).__name__} {s.begin} to {s.end}{" (epochs)" if s.by_epoch else ""}'
        for s in all_schedulers(runner.param_schedulers)
    ]
    return ', '.join(parts)


def _backends(runner: Runner, model: torch.nn.Module, weight: torch.Tensor | None) -> list[str]:
    """Which backends the operators of the model take here, and how exact they multiply."""
    mixers = [m for m in model.modules() if isinstance(getattr(m, 'backends', None), Backends)]
    if not mixers:
        return []
    dtype = _dtype(runner, weight)
    lines = sorted({m.backends.describe(m.backend, weight.device, dtype) for m in mixers})
    if weight.is_cuda and dtype == torch.float32:
        tf32 = torch.get_float32_matmul_precision() != 'highest'
        lines.append(f'products of float32: {"rounded to TF32" if tf32 else "float32, no TF32"}')
    return lines


def _dtype(runner: Runner, weight: torch.Tensor) -> torch.dtype:
    """What the operators compute in: that of autocast, or else of the weights."""
    wrapper = runner.optim_wrapper
    autocast = isinstance(wrapper, AmpOptimWrapper) or (
        not isinstance(runner._train_loop, BaseLoop) and getattr(runner._test_loop, 'fp16', False)
    )
    if not autocast:
        return weight.dtype
    return getattr(wrapper, 'cast_dtype', None) or torch.get_autocast_dtype(weight.device.type)
