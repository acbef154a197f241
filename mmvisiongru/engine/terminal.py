"""Start-up summary, and a terminal that stays quiet while a run is built."""

import logging

import torch
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmvisiongru._compat import built_loops
from mmvisiongru.engine.optim import all_schedulers, single_wrappers
from mmvisiongru.ops.backends import Backends


def silence(logger: MMLogger) -> list[tuple[logging.Handler, int]]:
    """Keep what is no warning off the terminal; gives the handlers with the levels to restore."""
    shown = [
        (handler, handler.level)
        for handler in logger.handlers
        if not isinstance(handler, logging.FileHandler) and handler.level < logging.WARNING
    ]
    for handler, _ in shown:
        handler.setLevel(logging.WARNING)
    return shown


def summary(runner: Runner) -> list[str]:
    """Model, parameters, data, schedule, device, backends and work dir of a run whose loops are built."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    parameters = list(model.parameters())
    parts = ', '.join(
        type(part).__name__ for part in model.children() if any(True for _ in part.parameters())
    )
    total, trained = (sum(p.numel() for p in parameters if p.requires_grad or frozen) for frozen in (1, 0))
    frozen = '' if trained == total else f', {trained / 1e6:.2f} M of them trained'
    lines = [f'model: {type(model).__name__} ({parts}), {total / 1e6:.2f} M parameters{frozen}']
    loops = built_loops(runner)
    for name, loader in ((name, loop.dataloader) for name, loop in loops.items()):
        size = f'{len(loader.dataset)} samples, {loader.batch_size} per process'
        lines.append(f'{name} data: {size}, {loader.num_workers} workers')
    if 'train' in loops:
        lines += _schedule(runner)
    if {'train', 'val'} <= loops.keys():
        # A bad one would end the run there, hours after its start.
        lines.append(
            'validation labels: first read at the first validation; to check them before, run '
            f'tools/misc/verify_dataset.py {runner.cfg.filename or "CONFIG"} --dataloaders val_dataloader'
        )
    weight = next(iter(parameters), torch.empty(0))
    kind = torch.cuda.get_device_name(weight.device) if weight.is_cuda else 'cpu'
    lines.append(f'device: {get_world_size()} x {kind}, threads: {torch.get_num_threads()}')
    dtype = _dtype(runner, loops, weight)
    mixers = [m for m in model.modules() if isinstance(getattr(m, 'backends', None), Backends)]
    lines += sorted({m.backends.describe(m.backend, weight.device, dtype) for m in mixers})
    if weight.is_cuda and dtype == torch.float32:
        tf32 = torch.get_float32_matmul_precision() != 'highest'
        lines.append(f'products of float32: {"rounded to TF32" if tf32 else "float32, no TF32"}')
    return [*lines, f'work dir: {runner.work_dir}, log file: {runner.logger.log_file}']


def _schedule(runner: Runner) -> list[str]:
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    parts = [f'{loop.max_epochs} epochs of {len(loop.dataloader)}' if by_epoch else str(loop.max_iters)]
    parts[0] = f'schedule: {parts[0]} iterations'
    settings = {}
    for optimizer in (wrapper.optimizer for wrapper in single_wrappers(runner.optim_wrapper)):
        rates = [group.get('initial_lr', group['lr']) for group in optimizer.param_groups]
        parts.append(f'{type(optimizer).__name__}, lr {max(rates):g}')
        for rate, group in zip(rates, optimizer.param_groups, strict=True):
            settings.setdefault((rate, group.get('weight_decay', 0)), []).extend(group['params'])
    for scheduler in all_schedulers(runner.param_schedulers):
        epochs = ' (epochs)' if scheduler.by_epoch else ''
        parts.append(f'{type(scheduler).__name__} {scheduler.begin} to {scheduler.end}{epochs}')
    rows = [('lr', 'decay', 'tensors', 'parameters')]
    for (rate, decay), group in settings.items():
        rows.append((f'{rate:.4g}', f'{decay:.4g}', f'{len(group):,}', f'{sum(p.numel() for p in group):,}'))
    table = '\n'.join(' '.join(f'{cell:>10}' for cell in row) for row in rows)
    return [', '.join(parts), *([f'groups of parameters:\n{table}'] if len(settings) > 1 else [])]


def _dtype(runner: Runner, loops: dict, weight: torch.Tensor) -> torch.dtype:
    """Type in which the operators compute: that of autocast, otherwise that of the weights."""
    wrappers = [w for w in single_wrappers(runner.optim_wrapper) if isinstance(w, AmpOptimWrapper)]
    if not wrappers and ('train' in loops or not getattr(loops.get('test'), 'fp16', False)):
        return weight.dtype
    cast = getattr(wrappers[0], 'cast_dtype', None) if wrappers else None
    return cast or torch.get_autocast_dtype(weight.device.type)
