"""Triton's interpreter: in a process of its own, and beside a NumPy that its version does not know."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.harness.children import PATIENCE, environment


@contextmanager
def interpreted(file: str, *args: str, **variables: str) -> Iterator[subprocess.Popen]:
    """The process that runs a file with its kernels interpreted, as long as it is needed."""
    command, pipe = [sys.executable, '-W', 'ignore', file, *args], subprocess.PIPE
    settings = dict(env=environment(TRITON_INTERPRET='1', **variables), stdout=pipe, stderr=pipe, text=True)
    with subprocess.Popen(command, **settings) as process:
        yield process
        process.kill()


def results(process: subprocess.Popen):
    """What it says in its last line, in JSON; before that it says at which case it is."""
    out, err = process.communicate(timeout=PATIENCE)
    last = out.splitlines()[-1:]
    assert process.returncode == 0, f'died at {last}\n{err[-3000:]}'
    return json.loads(last[0])


def mend() -> None:
    """Let a kernel count up to a number that it is given.

    The interpreter holds one as an array of one element. Up to version 3.6 it leaves the rest to int(), which
    NumPy refuses since 2.4.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch_and_mend
