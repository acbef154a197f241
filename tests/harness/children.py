"""Processes that a test starts, and those that it lets die."""

import os
import random
import socket
import traceback

from tests.harness import ROOT

# Seconds within which any process of a test ends, on a busy machine too. Only one that hangs takes longer, so
# this is no measure of speed.
PATIENCE = 600


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that finds this repository first, and all that this process finds."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    return os.environ | dict(PYTHONPATH=path, OMP_NUM_THREADS='1') | variables


def torchrun(processes: int, *options: str) -> list[str]:
    """Arguments of python that start a script in several processes."""
    options = options or ('--standalone',)
    return ['-m', 'mmvisiongru.launch.torchrun', *options, f'--nproc-per-node={processes}']


def in_child(action) -> int:
    """Run an action in a process, and process group, of its own; its exit code, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        os.setpgrp()
        code = 1
        try:
            action()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def free_port() -> int:
    """A port that stays free until a test uses it.

    Not one that the system would choose: those it gives to any other process in the meantime.
    """
    for port in random.SystemRandom().sample(range(10000, 30000), 100):
        with socket.socket() as sock:
            try:
                sock.bind(('', port))
            except OSError:
                continue
            return port
    raise RuntimeError('none of 100 ports is free')
