"""Signals that stop a run, and dataloader workers that outlive them."""

import os
import signal
import threading
from functools import partial

from torch.utils.data import DataLoader

# SIGUSR1 is what slurm sends ahead of a time limit, if it is asked to.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
CHECK_PARENT_EVERY_S = 5.0


def protect_workers(dataloader: DataLoader) -> None:
    """Let the workers of a dataloader outlive a signal to every process of the run, which still needs them.

    A terminal, slurm, a control group and a container signal all processes. The workers end when their parent
    tells them to, when it ends, or on SIGTERM from it, with which torch and Python end workers that hang.
    """
    dataloader.worker_init_fn = partial(_init_worker, dataloader.worker_init_fn)


def _init_worker(init, worker_id: int) -> None:
    if init is not None:
        init(worker_id)
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_IGN)
    # macOS does not tell who sent a signal. There, SIGTERM ends a worker.
    if hasattr(signal, 'sigtimedwait'):
        # Blocked in this thread and those that it starts, so that only sigtimedwait() receives it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process on SIGTERM from its parent, or when that is gone."""
    while True:
        sent = signal.sigtimedwait([signal.SIGTERM], CHECK_PARENT_EVERY_S)
        if (sent and sent.si_pid == parent) or os.getppid() != parent:
            os._exit(0)
