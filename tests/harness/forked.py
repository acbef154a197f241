"""A `python` whose processes start at once: forks of one that has imported what a run imports.

For tests of many short processes, each of which would import for longer than it runs. This file holds both
programs: ``serve SOCKET`` imports, then forks for each ``call ADDRESS ARGUMENTS OF PYTHON``.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

PRELOAD = (
    'mmengine.runner', 'mmpretrain.datasets', 'mmpretrain.evaluation', 'mmpretrain.models',
    'mmpretrain.visualization', 'mmseg.datasets', 'mmseg.evaluation', 'mmseg.models', 'mmseg.visualization',
    'mmvisiongru.engine', 'mmvisiongru.launch.prepare', 'mmvisiongru.models', 'torch.distributed.run',
)  # fmt: skip


@contextmanager
def forked_python(folder: Path) -> Iterator[str]:
    """The path of such a python; it takes `[-u] SCRIPT` with its arguments."""
    from tests.harness.children import environment

    address, python = folder / 'socket', folder / 'python'
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" call "{address}" "$@"\n')
    python.chmod(0o755)
    # Listens before the first call, which may come while it still imports.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(address))
        listening.listen(64)
        number = listening.fileno()
        command = [sys.executable, '-W', 'ignore', __file__, 'serve', str(number)]
        server = subprocess.Popen(command, env=environment(), pass_fds=[number])
    try:
        yield str(python)
    finally:
        server.kill()
        server.wait()


def serve(number: str) -> None:
    """Fork twice for every call: a process that runs, and one that waits for it."""
    for name in PRELOAD:
        import_module(name)
    # Nobody waits for the processes that wait.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(fileno=int(number))
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            break
        connection.close()
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
    pid = os.fork()
    if pid == 0:
        connection.close()
        run(**json.loads(message), files=files)
        return
    for file in files:
        os.close(file)
    connection.send(str(pid).encode())
    ended = os.pidfd_open(pid)
    if ended in select.select([connection, ended], [], [])[0]:
        connection.send(str(os.waitpid(pid, 0)[1]).encode())
    else:
        # The caller was killed.
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def run(arguments: list[str], folder: str, variables: dict[str, str], files: list[int]) -> None:
    """Be a python with these arguments, in the folder, environment and files of the caller."""
    # A signal to its process group must not reach the tests.
    os.setpgrp()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = arguments = arguments[arguments[0] == '-u' :]
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name='__main__')


def call(address: str, *arguments: str) -> None:
    """Have a process run with the folder, environment and files of this one, and end as it does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        request = dict(arguments=arguments, folder=os.getcwd(), variables=dict(os.environ))
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        pid = int(connection.recv(100))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = os.waitstatus_to_exitcode(int(connection.recv(100)))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == '__main__':
    dict(serve=serve, call=call)[sys.argv[1]](*sys.argv[2:])
