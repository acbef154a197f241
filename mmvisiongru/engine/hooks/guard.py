"""Stop training on a signal, with a checkpoint, or on repeated non-finite values, without one."""

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from math import isfinite

import torch
from mmengine.dist import all_gather_object, all_reduce, barrier, get_world_size
from mmengine.hooks import EMAHook, Hook
from torch import nn

from mmvisiongru.engine.hooks.checkpoint import AtomicCheckpointHook
from mmvisiongru.engine.optim import is_accumulating, single_wrappers
from mmvisiongru.engine.signals import SIGNALS
from mmvisiongru.errors import InputError
from mmvisiongru.registry import HOOKS

# Seconds after which a second signal is a user's, who wants to quit at once, and not a launcher's duplicate.
FORCE_QUIT_AFTER_S = 5.0


@HOOKS.register_module()
class GuardHook(Hook):
    """Stops on a signal with a checkpoint, and on repeated non-finite losses or gradients without one.

    The processes of a run decide together: a signal to one of them stops all, after the iteration in which it
    comes. In a validation, the checkpoint is saved at once; several processes still finish it before they
    stop. The exit code is 128 + the number of the signal.

    An optimizer step with a non-finite gradient is skipped, so the weights stay good. After ``patience``
    consecutive iterations with a non-finite loss or gradient, the run ends. An iteration that only adds to an
    accumulated gradient, and a step that mixed precision skips to find its loss scale, do not count.
    """

    priority = 'LOWEST'

    def __init__(self, patience: int = 3):
        if patience < 1:
            raise ValueError(f'patience must be at least 1, got {patience}')
        self.patience, self.consecutive, self.fault = patience, 0, None
        self.signal, self.since, self.handlers, self.handles = 0, 0.0, {}, []
        # Only between two iterations is the model one that can be saved.
        self.between, self.saved = False, False
        # For each EMAHook, whether the model has its averages at the moment, in the place of the weights.
        self.swapped = {}
        # Per wrapper before the iteration: backward passes and loss scale. Per optimizer: gradient finite.
        self.before, self.finite = {}, {}

    def before_train(self, runner) -> None:
        """Take over the signals, and look at gradients right before the optimizer uses them."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self.handlers[number] = signal.signal(number, self._on_signal)
        else:
            runner.logger.warning('not in the main thread: SIGTERM and SIGINT do not stop this run')
        for wrapper in single_wrappers(runner.optim_wrapper):
            self.handles.append(wrapper.optimizer.register_step_pre_hook(self._before_step))
        for hook in (h for h in runner.hooks if isinstance(h, EMAHook)):
            self.swapped[hook] = False
            # The swap is noted where it happens: another hook may raise before this one is called.
            for name in ('before_val_epoch', 'after_val_epoch'):
                setattr(hook, name, partial(self._swap, hook, getattr(hook, name)))

    def _swap(self, hook: EMAHook, swap: Callable, *args, **kwargs) -> None:
        swap(*args, **kwargs)
        self.swapped[hook] = not self.swapped[hook]

    def _on_signal(self, number, frame) -> None:
        if self.signal and time.monotonic() - self.since > FORCE_QUIT_AFTER_S:
            raise SystemExit(128 + number)
        if not self.signal:
            self.signal, self.since = number, time.monotonic()
            # Torch's handler raises wherever this process is once a worker dies. Without it, the dataloader
            # notices between two iterations.
            self.handlers.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))

    def _before_step(self, optimizer, args, kwargs) -> None:
        """Skip the step if a gradient is not finite."""
        params = (p for group in optimizer.param_groups for p in group['params'])
        gradients = [p.grad for p in params if p.grad is not None]
        self.finite[optimizer] = not gradients or _are_finite(gradients)
        if not self.finite[optimizer]:
            # An optimizer leaves a parameter without a gradient alone.
            optimizer.zero_grad()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.between, self.finite = False, {}
        self.before = {w: (w.inner_count, _loss_scale(w)) for w in single_wrappers(runner.optim_wrapper)}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Judge the iteration together with the other processes, and stop if it must be."""
        losses = {k: float(torch.as_tensor(v).detach()) for k, v in (outputs or {}).items() if 'loss' in k}
        lost = next((f'{name} {value:g}' for name, value in losses.items() if not isfinite(value)), None)
        steps = [self._took_step(wrapper) for wrapper in single_wrappers(runner.optim_wrapper)]
        flags = torch.tensor([int(bool(lost or False in steps)), self.signal])
        all_reduce(flags, op='max')
        bad, number = flags.tolist()
        if bad:
            self._count(runner, lost, data_batch)
        elif True in steps:
            self.consecutive, self.fault = 0, None
        # With half of an accumulated gradient, the resumed run would not be the same.
        if number and not is_accumulating(runner.optim_wrapper):
            self._save(runner, number, runner.iter + 1)
            # No process leaves before the file is there: a launcher ends the others with the first.
            barrier()
            raise SystemExit(128 + number)
        self.between = True

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Save at once on a signal: the validation may take longer than the time that is left."""
        if self.signal and self.between and not self.saved:
            self._save(runner, self.signal, runner.iter)
            # The other processes may not have got the signal, and wait for this one to gather the metrics.
            if get_world_size() == 1:
                raise SystemExit(128 + self.signal)

    def after_failure(self, runner) -> None:
        """Save on a signal although the run fails, as it does if the signal ended a dataloader worker."""
        if self.signal and self.between:
            if not self.saved:
                self._save(runner, self.signal, runner.iter)
            raise SystemExit(128 + self.signal)

    def _took_step(self, wrapper) -> bool | None:
        """Whether a step was taken; None if none was due, or if a smaller loss scale may still help."""
        finite, scale = self.finite.get(wrapper.optimizer), _loss_scale(wrapper)
        count, before = self.before[wrapper]
        if scale is None or finite:
            return finite
        # A loss scaler does not call an optimizer that is not fused if a gradient is not finite.
        due = finite is False or (count < wrapper.inner_count and wrapper.should_update())
        # A loss scale is meant to enlarge: below 1, a smaller one does not help.
        return False if due and not 1 <= scale < before else None

    def _count(self, runner, lost: str | None, data_batch) -> None:
        self.consecutive += 1
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        samples = samples if isinstance(samples, (list, tuple)) else []
        files = ', '.join(str(getattr(sample, 'img_path', None)) for sample in samples)
        fault = f'iteration {runner.iter + 1}: {lost or "gradient not finite"}, {files or "files not known"}'
        # The first fault says most: those that follow may be its consequences.
        self.fault = self.fault or (bool(lost), fault)
        runner.logger.warning(f'not finite: {fault}')
        if self.consecutive < self.patience:
            return
        faults = all_gather_object(self.fault)
        # All processes share a gradient; only the loss tells whose it was.
        guilty = [fault for bad_loss, fault in faults if bad_loss] or [fault for _, fault in faults[:1]]
        last = runner.message_hub.runtime_info.get('last_ckpt')
        raise InputError(
            f'loss or gradient was not finite for {self.consecutive} consecutive iterations '
            f'(patience={self.patience}), from {"; ".join(guilty)}; last checkpoint: {last or "none yet"}'
        )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to save non-finite weights, which would replace good ones."""
        states = [*checkpoint['state_dict'].items(), *checkpoint.get('ema_state_dict', {}).items()]
        # A module may have a state that is no tensor.
        tensors = ((k, v) for k, v in states if torch.is_tensor(v) and v.is_floating_point())
        lost = [k for k, v in tensors if not v.isfinite().all()]
        if lost:
            raise InputError(
                f'iteration {runner.iter + 1}: {len(lost)} tensors of the model are not finite, first '
                f'{lost[0]}; no checkpoint is written, the last one is kept'
            )

    def _save(self, runner, number: int, done: int) -> None:
        """Save a checkpoint after so many iterations because of a signal."""
        hook = next((h for h in runner.hooks if isinstance(h, AtomicCheckpointHook)), None)
        averages = [average for average, swapped in self.swapped.items() if swapped]
        for average in averages:
            average.after_val_epoch(runner)
        accumulating = is_accumulating(runner.optim_wrapper)
        saved = hook.save_stopped(runner, done) if hook and not accumulating else None
        for average in averages:
            average.before_val_epoch(runner)
        self.saved = True
        saved = f'saved {saved}, go on with --resume' if saved else 'nothing saved'
        runner.logger.warning(f'stopped by {signal.Signals(number).name} after iteration {done}: {saved}')

    def restore(self, runner) -> None:
        """Restore the signal handlers, the optimizers and the EMAHooks."""
        for number, handler in self.handlers.items():
            # None stands for a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for handle in self.handles:
            handle.remove()
        for hook in self.swapped:
            del hook.before_val_epoch, hook.after_val_epoch
        self.__init__(self.patience)

    after_train = restore


def _loss_scale(wrapper) -> float | None:
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler.get_scale() if scaler is not None and scaler.is_enabled() else None


def _are_finite(gradients: list[torch.Tensor]) -> bool:
    """One pass over the memory and one wait for the device. Inf and NaN survive a norm."""
    # get_total_norm is part of torch since 2.6.
    if hasattr(nn.utils, 'get_total_norm'):
        return bool(nn.utils.get_total_norm(gradients).isfinite())
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
    return bool(torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all())
