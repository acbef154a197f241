"""Stopping at the end of an iteration: asked to by a signal, or because the numbers are lost."""

import signal
import threading
import time

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from torch import distributed

from mmvisiongru.engine.hooks.checkpoint import AtomicCheckpointHook
from mmvisiongru.errors import InputError
from mmvisiongru.registry import HOOKS

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A signal may come twice, from the terminal and from a launcher; one after this many seconds means it.
IMPATIENT = 5.0


@HOOKS.register_module()
class GuardHook(Hook):
    """Stops on SIGTERM and SIGINT with a checkpoint, and on numbers that are not finite without one.

    An optimizer step with a gradient that is not finite is left out, as automatic mixed precision does, so
    the weights stay good. A signal to one process stops all; the exit code is 128 + its number.

    Args:
        patience (int): Iterations in a row with such a loss or gradient after which the run ends. Those that
            only add to an accumulated gradient do not break a row, and those that mixed precision skips to
            find its loss scale do not count.
    """

    priority = 'LOWEST'

    def __init__(self, patience: int = 3):
        if patience < 1:
            raise ValueError(f'patience must be at least 1, got {patience}')
        self.patience = patience
        self.in_a_row, self.fault, self.bad_gradient, self.stepped = 0, None, False, False
        self.signal, self.since, self.handlers, self.handles, self.group = 0, 0.0, {}, [], None

    def before_train(self, runner) -> None:
        """Take over the signals, and look at gradients right before the optimizer uses them."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self.handlers[number] = signal.signal(number, self._on_signal)
        else:
            runner.logger.warning('not in the main thread: SIGTERM and SIGINT do not stop this run')
        wrapper = runner.optim_wrapper
        for one in wrapper.optim_wrappers.values() if hasattr(wrapper, 'optim_wrappers') else [wrapper]:
            self.handles.append(one.optimizer.register_step_pre_hook(self._before_step))
        if get_world_size() > 1 and distributed.get_backend() != 'gloo':
            # On the CPU: the flags must not wait for the GPU.
            self.group = distributed.new_group(backend='gloo')

    def _on_signal(self, number, frame) -> None:
        if self.signal and time.monotonic() - self.since > IMPATIENT:
            raise SystemExit(128 + number)
        if not self.signal:
            self.signal, self.since = number, time.monotonic()

    def _before_step(self, optimizer, args, kwargs) -> None:
        """Take gradients away that are not finite: without one, the optimizer leaves a parameter alone."""
        # A fused optimizer is told by the loss scaler what to skip; others are not called then.
        if getattr(optimizer, 'found_inf', None) is not None:
            self.stepped = not bool(optimizer.found_inf)
            return
        self.stepped = True
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        by_kind = {}
        for parameter in parameters:
            by_kind.setdefault((parameter.device, parameter.grad.dtype), []).append(parameter.grad)
        norms = []
        for (_, dtype), gradients in by_kind.items():
            wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
            # One pass at the speed of memory, which the largest value would not be.
            norms += [norm.float() for norm in torch._foreach_norm(gradients, 2, wide)]
        if norms and not torch.stack(norms).isfinite().all():
            self.bad_gradient = True
            for parameter in parameters:
                parameter.grad = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Agree with the other processes whether to stop, and do."""
        loss = (outputs or {}).get('loss')
        bad_loss = torch.is_tensor(loss) and not bool(loss.isfinite().all())
        due = not _accumulating(runner)
        bad_step = due and (self.bad_gradient or self._skipped(runner.optim_wrapper))
        number, bad = self._agree(self.signal, bad_loss or bad_step)
        if bad:
            what = f'loss {loss.item():g}' if bad_loss else 'gradient not finite'
            self._note(runner, bad_loss, f'{what}, {", ".join(files_of_batch(data_batch))}')
        elif due:
            self.in_a_row, self.fault = 0, None
        self.bad_gradient = self.stepped = False
        if number:
            self._stop(runner, number)

    def _skipped(self, wrapper) -> bool:
        """Whether mixed precision left the step out where its loss scale is not the reason."""
        scaler = getattr(wrapper, 'loss_scaler', None)
        if self.stepped or scaler is None or not scaler.is_enabled():
            return False
        fixed = wrapper._scale_update_param is not None
        # A scale is meant to enlarge: below 1 no smaller one will help.
        return fixed or scaler.get_scale() < 1

    def _agree(self, *flags: int) -> tuple[int, ...]:
        """The highest of each flag over the processes."""
        if get_world_size() == 1:
            return flags
        flags = torch.tensor(flags, dtype=torch.int64)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self.group)
        return tuple(flags.tolist())

    def _note(self, runner, bad_loss: bool, fault: str) -> None:
        self.in_a_row += 1
        fault = f'iteration {runner.iter + 1}: {fault}'
        # The first says most: what follows may be its consequence.
        self.fault = self.fault or (bad_loss, fault)
        runner.logger.warning(f'not finite: {fault}')
        if self.in_a_row < self.patience:
            return
        faults = all_gather_object(self.fault, self.group)
        # All processes share a gradient; the loss tells whose it was.
        guilty = [fault for bad_loss, fault in faults if bad_loss] or [fault for _, fault in faults]
        last = runner.message_hub.runtime_info.get('last_ckpt')
        self.give_back(runner)
        raise InputError(
            f'numbers that are not finite in {self.in_a_row} iterations in a row, from {"; ".join(guilty)}; '
            f'last checkpoint: {last or "none yet"}'
        )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep weights that are lost from taking the place of good ones."""
        states = [checkpoint['state_dict'], checkpoint.get('ema_state_dict', {})]
        lost = [k for s in states for k, v in s.items() if v.is_floating_point() and not _finite(v)]
        if lost:
            raise InputError(
                f'iteration {runner.iter + 1}: {len(lost)} tensors of the model are not finite, first '
                f'{lost[0]}; no checkpoint is written, the last one is kept'
            )

    def _stop(self, runner, number: int) -> None:
        # Half of an accumulated gradient would be lost.
        if _accumulating(runner):
            return
        hook = next((h for h in runner.hooks if isinstance(h, AtomicCheckpointHook)), None)
        saved = f'saved {hook.save_stopped(runner)}, go on with --resume' if hook else 'nothing saved'
        runner.logger.warning(
            f'stopped by {signal.Signals(number).name} after iteration {runner.iter + 1}: {saved}'
        )
        if get_world_size() > 1:
            # No process leaves before the file is there: a launcher ends the others with the first.
            distributed.barrier(group=self.group)
        self.give_back(runner)
        raise SystemExit(128 + number)

    def give_back(self, runner) -> None:
        """Give the signals and the optimizer back."""
        for number, handler in self.handlers.items():
            # None: it was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for handle in self.handles:
            handle.remove()
        self.handlers, self.handles, self.signal = {}, [], 0

    after_train = give_back


def _accumulating(runner) -> bool:
    """Whether the iteration just done only added to the gradient."""
    return bool((runner.iter + 1) % getattr(runner.optim_wrapper, '_accumulative_counts', 1))


def _finite(tensor) -> bool:
    # Inf and NaN survive a sum; it is several times faster than isfinite(), and no copy.
    return bool(tensor.double().sum().isfinite()) or bool(tensor.isfinite().all())


def files_of_batch(data_batch) -> list[str]:
    """The image files of a batch, or how many samples it has if they are not known."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    samples = samples if isinstance(samples, (list, tuple)) else []
    return [str(getattr(s, 'img_path', None)) for s in samples] or ['files not known']
