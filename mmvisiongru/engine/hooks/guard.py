"""Stopping at the end of an iteration: asked to by a signal, or because the numbers are lost."""

import signal
import threading
import time
from dataclasses import dataclass

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from torch import Tensor, distributed

from mmvisiongru.engine.hooks.checkpoint import AtomicCheckpointHook
from mmvisiongru.engine.optim import FUSED, single_wrappers
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

    The host does not wait for the device. A fused Adam or AdamW leaves a step out by itself, on the device.
    What was wrong with an iteration is read at the end of the next one; once something was, at the end of
    each. Any other optimizer costs one wait in a step. With several processes a signal, too, is acted upon at
    the end of the iteration after the one that it comes in.

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
        self.in_a_row, self.fault, self.last = 0, None, None
        self.bad_gradients, self.scaled, self.stepped, self.lent = [], [], False, []
        self.signal, self.since, self.handlers, self.handles, self.mail = 0, 0.0, {}, [], None

    def before_train(self, runner) -> None:
        """Take over the signals, and look at gradients right before the optimizer uses them."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self.handlers[number] = signal.signal(number, self._on_signal)
        else:
            runner.logger.warning('not in the main thread: SIGTERM and SIGINT do not stop this run')
        for wrapper in single_wrappers(runner.optim_wrapper):
            self.handles.append(wrapper.optimizer.register_step_pre_hook(self._before_step))
            self.handles.append(wrapper.optimizer.register_step_post_hook(self._after_step))
        self.mail = _Mail(next(runner.model.parameters()).device)

    def _on_signal(self, number, frame) -> None:
        if self.signal and time.monotonic() - self.since > IMPATIENT:
            raise SystemExit(128 + number)
        if not self.signal:
            self.signal, self.since = number, time.monotonic()

    def _before_step(self, optimizer, args, kwargs) -> None:
        """Have the step left out if a gradient is not finite."""
        self.stepped = True
        # A loss scaler has looked, and tells a fused optimizer what to skip; others are not called then.
        if getattr(optimizer, 'found_inf', None) is not None:
            self.scaled.append(optimizer.found_inf)
            return
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if not parameters:
            return
        bad = _not_finite([p.grad for p in parameters])
        self.bad_gradients.append(bad)
        if isinstance(optimizer, FUSED) and all(group.get('fused') for group in optimizer.param_groups):
            optimizer.found_inf = bad
            self.lent.append(optimizer)
        elif bool(bad):
            for parameter in parameters:
                # Without a gradient, the optimizer leaves a parameter alone.
                parameter.grad = None

    def _after_step(self, optimizer, args, kwargs) -> None:
        if optimizer in self.lent:
            self.lent.remove(optimizer)
            del optimizer.found_inf

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Send what is known of this iteration; judge the one before, and stop if so agreed."""
        report = self._report(runner, data_batch, (outputs or {}).get('loss'))
        last, self.last = self.last, report
        if last:
            self._judge(runner, last)
        if self.in_a_row or self.is_last_train_iter(runner):
            self.last = None
            self._judge(runner, report)
        # Alone, nobody needs to be asked.
        if self.signal and get_world_size() == 1:
            self._stop(runner, self.signal)

    def _report(self, runner, data_batch, loss) -> '_Report':
        loss = loss.detach() if torch.is_tensor(loss) else None
        device = self.mail.device
        due = not _accumulating(runner)
        flags = [torch.zeros((), device=device), *self.bad_gradients] if due else []
        flags += self._skipped(runner.optim_wrapper, device) if due else []
        if loss is not None:
            flags.append(~loss.isfinite().all())
        bad = torch.stack([flag.to(device, non_blocking=True).float().reshape(()) for flag in flags]).amax()
        self.bad_gradients, self.scaled, self.stepped = [], [], False
        # Filled on the device: nothing is copied to it.
        place = self.mail.send(torch.stack([bad, torch.full_like(bad, self.signal)]))
        return _Report(runner.iter + 1, due, loss, files_of_batch(data_batch), place)

    def _skipped(self, wrapper, device) -> list[Tensor]:
        """Whether mixed precision left the step out where its loss scale is not the reason."""
        scaler = getattr(wrapper, 'loss_scaler', None)
        if scaler is None or not scaler.is_enabled() or (self.stepped and not self.scaled):
            return []
        skipped = self.scaled or [torch.ones((), device=device)]
        if wrapper._scale_update_param is None:
            # A scale is meant to enlarge: below 1 no smaller one will help.
            skipped = [flag * (scaler._get_scale_async() < 1).to(flag) for flag in skipped]
        return [(flag > 0).float().amax() for flag in skipped]

    def _judge(self, runner, report: '_Report') -> None:
        """Read what was sent of an iteration, the highest of each flag over the processes."""
        bad, number = self.mail.read(report.place)
        if bad:
            self._note(runner, report)
        elif report.due:
            self.in_a_row, self.fault = 0, None
        if number:
            self._stop(runner, int(number))

    def _note(self, runner, report: '_Report') -> None:
        self.in_a_row += 1
        bad_loss = report.loss is not None and not bool(report.loss.isfinite().all())
        what = f'loss {report.loss.item():g}' if bad_loss else 'gradient not finite'
        fault = f'iteration {report.iteration}: {what}, {", ".join(report.files)}'
        # The first says most: what follows may be its consequence.
        self.fault = self.fault or (bad_loss, fault)
        runner.logger.warning(f'not finite: {fault}')
        if self.in_a_row < self.patience:
            return
        faults = all_gather_object(self.fault)
        # All processes share a gradient; the loss tells whose it was.
        guilty = [fault for bad_loss, fault in faults if bad_loss] or [fault for _, fault in faults]
        last = runner.message_hub.runtime_info.get('last_ckpt')
        lost = (
            f'numbers that are not finite in {self.in_a_row} iterations in a row, from {"; ".join(guilty)}; '
        )
        self.give_back(runner)
        raise InputError(f'{lost}last checkpoint: {last or "none yet"}')

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
            distributed.barrier()
        self.give_back(runner)
        raise SystemExit(128 + number)

    def give_back(self, runner) -> None:
        """Give the signals and the optimizer back."""
        for number, handler in self.handlers.items():
            # None: it was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for handle in self.handles:
            handle.remove()
        for optimizer in list(self.lent):
            self._after_step(optimizer, (), {})
        self.handlers, self.handles, self.signal, self.last, self.mail = {}, [], 0, None, None
        self.in_a_row, self.fault = 0, None

    after_train = give_back


@dataclass
class _Report:
    """What is known of an iteration, counted from 1; its flags are on their way to the host."""

    iteration: int
    due: bool
    loss: Tensor | None
    files: list[str]
    place: int


class _Mail:
    """Flags on their way from the device to the host, the highest of each over the processes.

    Two can be under way. What is sent is there an iteration later without waiting for anything.
    """

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == 'cuda'
        self.boxes = torch.zeros(2, 2, pin_memory=self.cuda)
        self.views, self.arrivals, self.next = self.boxes.numpy(), [None, None], 0

    def send(self, flags: Tensor) -> int:
        """Send two flags; gives the place to read them from."""
        place, self.next = self.next, 1 - self.next
        together = get_world_size() > 1
        if together and flags.device.type != 'cpu':
            # Of the device, not of the host.
            distributed.all_reduce(flags, distributed.ReduceOp.MAX, async_op=True).wait()
        self.boxes[place].copy_(flags, non_blocking=self.cuda)
        if self.cuda:
            self.arrivals[place] = torch.cuda.Event()
            self.arrivals[place].record()
        elif together and flags.device.type == 'cpu':
            box = self.boxes[place]
            self.arrivals[place] = distributed.all_reduce(box, distributed.ReduceOp.MAX, async_op=True)
        return place

    def read(self, place: int) -> tuple[float, float]:
        """Wait until they are there."""
        arrival, self.arrivals[place] = self.arrivals[place], None
        if self.cuda:
            arrival.synchronize()
        elif arrival:
            arrival.wait()
        return tuple(map(float, self.views[place]))


def _not_finite(gradients: list[Tensor]) -> Tensor:
    """1 where any of them has a value that is not finite, else 0; stays on the device."""
    by_kind = {}
    for gradient in gradients:
        by_kind.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    norms, device = [], gradients[0].device
    for (_, dtype), alike in by_kind.items():
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        # One pass at the speed of memory, which the largest value would not be.
        found = torch._foreach_norm(alike, 2, wide)
        norms += [norm.float().to(device, non_blocking=True) for norm in found]
    return (~torch.stack(norms).isfinite().all()).float()


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
