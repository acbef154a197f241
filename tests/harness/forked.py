"""A `python` whose processes start at once: forks of one that has imported what a run imports.

For tests of many short processes, of which each would import for longer than it runs. What does the work are
two programs in this file: ``serve ADDRESS`` imports, and forks for each ``call ADDRESS ARGUMENTS OF PYTHON``.
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
from pathlib import Path

PRELOAD = (
    'mmengine.runner', 'mmpretrain.datasets', 'mmpretrain.evaluation', 'mmpretrain.models',
    'mmpretrain.visualization', 'mmseg.datasets', 'mmseg.evaluation', 'mmseg.models', 'mmseg.visualization',
    'mmvisiongru.engine', 'mmvisiongru.launch.prepare', 'mmvisiongru.models', 'torch.distributed.run',
)  # fmt: skip


@contextmanager
def forked_python(folder: Path) -> Iterator[str]:
    """The path of such a python; it takes `-m MODULE` or a script, with their arguments."""
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


def serve(number: str) -> list[str]:
    """Fork for every call; returns the arguments of python in the process that is to run them."""
    import importlib

    for name in PRELOAD:
        importlib.import_module(name)
    # Nobody waits for the processes that wait.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(fileno=int(number))
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return start(connection)
        connection.close()


def start(connection: socket.socket) -> list[str]:
    """Be the process that waits for another, or that other."""
    message, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
    pid = os.fork()
    if pid:
        for file in files:
            os.close(file)
        wait(pid, connection)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    request = json.loads(message)
    os.chdir(request['folder'])
    os.environ.clear()
    os.environ.update(request['environment'])
    return request['arguments']


def wait(pid: int, connection: socket.socket) -> None:
    """Tell the caller how the process ended; end it if the caller is killed."""
    connection.send(str(pid).encode())
    ended = os.pidfd_open(pid)
    if ended in select.select([connection, ended], [], [])[0]:
        connection.send(str(os.waitpid(pid, 0)[1]).encode())
    else:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def call(address: str, *arguments: str) -> None:
    """Have a process run with the folder, environment and files of this one, and end as it does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        request = dict(arguments=arguments, folder=os.getcwd(), environment=dict(os.environ))
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        pid = int(connection.recv(100))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = os.waitstatus_to_exitcode(int(connection.recv(100)))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def interpret(arguments: list[str]) -> None:
    """Do what python does with `[-u] -m MODULE ...` and `[-u] SCRIPT ...`."""
    if arguments[0] == '-u':
        arguments = arguments[1:]
    sys.stdout.reconfigure(line_buffering=True)
    if arguments[0] == '-m':
        sys.argv, sys.path[0] = arguments[1:], os.getcwd()
        runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name='__main__')


if __name__ == '__main__':
    if sys.argv[1] == 'call':
        call(*sys.argv[2:])
    else:
        interpret(serve(sys.argv[2]))
