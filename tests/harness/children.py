"""Processes that a test lets die."""

import os


def in_child(action) -> int:
    """Run an action in a process of its own; gives the signal that killed it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])
