"""The end of a run that does not move."""

import faulthandler
import sys
import time

from mmengine.hooks import Hook

from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class StallHook(Hook):
    """Ends a process that finishes no iteration for ``timeout`` seconds, and shows where it hangs.

    The stacks of all threads go to stderr, the exit code is 1. A thread of the interpreter keeps the time, so
    it also ends a process that waits in a collective operation or for a worker. Saving a checkpoint and
    computing metrics must take less.
    """

    priority = 'VERY_HIGH'

    def __init__(self, timeout: float = 1800):
        if timeout <= 0:
            raise ValueError(f'timeout must be above 0, got {timeout}')
        self.timeout, self.armed = timeout, 0.0

    def _arm(self, runner, *args, **kwargs) -> None:
        # dump_traceback_later() starts a thread each time, so not every iteration calls it.
        if time.monotonic() - self.armed > min(1, self.timeout / 10):
            self.armed = time.monotonic()
            faulthandler.dump_traceback_later(self.timeout, exit=True, file=sys.__stderr__)

    def _disarm(self, runner, *args, **kwargs) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.armed = 0.0

    before_train = before_train_iter = after_train_iter = _arm
    before_val_epoch = after_val_iter = after_val_epoch = _arm
    after_train = after_run = restore = _disarm
