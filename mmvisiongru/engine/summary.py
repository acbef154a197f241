"""What a run says of itself before its first iteration."""

import torch
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmvisiongru._compat import built_loops
from mmvisiongru.engine.optim import all_schedulers, single_wrappers
from mmvisiongru.ops.backends import Backends


def summary(runner: Runner) -> list[str]:
    """Model, parameters, data, schedule, device, backends and work dir of a run whose loops are built."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    parts = ', '.join(type(part).__name__ for part in model.children() if list(part.parameters()))
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, frozen = sum(n for n, _ in sizes), sum(n for n, learns in sizes if not learns)
    lines = [f'model: {type(model).__name__} ({parts}), {total / 1e6:.2f} M parameters']
    lines[0] += f', {frozen / 1e6:.2f} M of them frozen' if frozen else ''
    loops = built_loops(runner)
    for name, data in ((name, loop.dataloader) for name, loop in loops.items()):
        size = f'{len(data.dataset)} samples, {getattr(data.batch_sampler, "batch_size", None)} per process'
        lines.append(f'{name} data: {size}, {data.num_workers} workers')
    if 'train' in loops:
        lines += _schedule(runner)
    weight = next(model.parameters(), torch.empty(0))
    kind = torch.cuda.get_device_name(weight.device) if weight.is_cuda else 'cpu'
    lines.append(f'device: {get_world_size()} x {kind}, threads: {torch.get_num_threads()}')
    dtype = _dtype(runner, loops, weight)
    mixers = [m for m in model.modules() if isinstance(getattr(m, 'backends', None), Backends)]
    lines += sorted({m.backends.describe(m.backend, weight.device, dtype) for m in mixers})
    if weight.is_cuda and dtype == torch.float32:
        lines.append(f'float32 matmul precision: {torch.get_float32_matmul_precision()}')
    return [*lines, f'work dir: {runner.work_dir}, log file: {runner.logger.log_file}']


def _schedule(runner: Runner) -> list[str]:
    """Length, optimizers and schedulers, and a table of the parameter groups if there are several."""
    loop, table = runner.train_loop, {}
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    length = f'{loop.max_epochs} epochs of {len(loop.dataloader)}' if by_epoch else loop.max_iters
    parts = [f'schedule: {length} iterations']
    for optimizer in (wrapper.optimizer for wrapper in single_wrappers(runner.optim_wrapper)):
        rates = [group.get('initial_lr', group['lr']) for group in optimizer.param_groups]
        parts.append(f'{type(optimizer).__name__}, lr {max(rates):g}')
        for rate, group in zip(rates, optimizer.param_groups, strict=True):
            table.setdefault((rate, group.get('weight_decay', 0)), []).extend(group['params'])
    for scheduler in all_schedulers(runner.param_schedulers):
        epochs = ' (epochs)' if scheduler.by_epoch else ''
        parts.append(f'{type(scheduler).__name__} {scheduler.begin} to {scheduler.end}{epochs}')
    rows = [f'{"lr":>10} {"decay":>10} {"tensors":>10} {"parameters":>12}']
    for (rate, decay), group in table.items():
        rows.append(f'{rate:10.4g} {decay:10.4g} {len(group):10} {sum(p.numel() for p in group):12}')
    return [', '.join(parts), *(['\n'.join(['groups of parameters:', *rows])] if len(table) > 1 else [])]


def _dtype(runner: Runner, loops: dict, weight: torch.Tensor) -> torch.dtype:
    """Type in which the operators compute: that of autocast, otherwise that of the weights."""
    wrappers = [w for w in single_wrappers(runner.optim_wrapper) if isinstance(w, AmpOptimWrapper)]
    if not wrappers and ('train' in loops or not getattr(loops.get('test'), 'fp16', False)):
        return weight.dtype
    cast = getattr(wrappers[0], 'cast_dtype', None) if wrappers else None
    return cast or torch.get_autocast_dtype(weight.device.type)
