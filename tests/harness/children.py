"""Processes that a test starts, and those that it lets die."""

import os
import random
import socket
import traceback
from contextlib import suppress

from tests.harness import ROOT

# Seconds within which any process of a test ends, on a busy machine too; only one that hangs takes longer.
PATIENCE = 600


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that finds this repository first, and all that this process finds."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    return os.environ | dict(PYTHONPATH=path, OMP_NUM_THREADS='1') | variables


def torchrun(processes: int) -> list[str]:
    """Arguments of python that start a script in several processes."""
    return [str(ROOT / 'tools/misc/torchrun.py'), '--standalone', f'--nproc-per-node={processes}']


def in_child(action) -> int:
    """Run an action in a process, and process group, of its own; its exit code, or minus the signal."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
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


def free_port() -> int:
    """A port outside of the range from which the system gives ports to other processes."""
    while True:
        port = random.SystemRandom().randrange(10000, 30000)
        with suppress(OSError), socket.create_server(('', port)):
            return port
