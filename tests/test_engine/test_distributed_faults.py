"""A process that fails, dies or hangs ends the whole run in time, says why, and the same command resumes."""

import ctypes
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from mmvisiongru.checkpoint import load_checkpoint_file
from mmvisiongru.engine.hooks import StallHook
from tests.harness import ROOT
from tests.harness.children import PATIENCE, environment, torchrun
from tests.harness.toy import finish, start

TIMEOUT = 8
STALL = {'default_hooks.stall': dict(type='mmvisiongru.StallHook', timeout=TIMEOUT)}
# Of the process group as well; a run of two starts in this time.
DIST = {'env_cfg': dict(dist_cfg=dict(timeout=TIMEOUT))}
START = 60


# torch notices in one of two ways.
WORKER_DIED = r'DataLoader worker \(pid.*\) is killed by signal: Killed|ConnectionResetError'


def check_resumes(processes, work_dir):
    code, log = finish(start(processes, work_dir, resume=True))
    assert code == 0, log
    assert load_checkpoint_file(str(work_dir / 'iter_18.pth'))['meta']['iter'] == 18


def run_into(processes, work_dir, **fault) -> tuple[int, str, float]:
    """The exit code and the output of a run with a fault, and the seconds from its last checkpoint on."""
    workers = 1 if 'worker' in fault['what'] else 0
    more = {**STALL, **(DIST if processes > 1 else {})}
    process = start(processes, work_dir, workers=workers, fault=dict(at=8, **fault), **more)
    end = time.monotonic() + START
    while not (work_dir / 'iter_6.pth').exists() and time.monotonic() < end:
        time.sleep(0.1)
    since = time.monotonic()
    code, log = finish(process)
    return code, log, time.monotonic() - since


def test_stalled_process_ends_and_shows_where(tmp_path):
    """Also one that waits where no signal of Python's is handled, as in a collective operation."""
    pid = os.fork()
    if pid == 0:
        stderr = os.open(tmp_path / 'stderr', os.O_WRONLY | os.O_CREAT)
        os.dup2(stderr, sys.__stderr__.fileno())
        hook = StallHook(timeout=0.5)
        hook.before_train(None)
        ctypes.PyDLL(None).sleep(60)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert 'in test_stalled_process_ends_and_shows_where' in (tmp_path / 'stderr').read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('hang', r'in hang'),
        ('hang_worker', '_try_get_data'),
        ('kill_worker', WORKER_DIED),
        ('fail', 'a fault of this rank'),
    ],
)
def test_fault_of_one_process(tmp_path, what, message):
    code, log, seconds = run_into(1, tmp_path, what=what)
    assert code == 1, log
    assert re.search(message, log), log
    assert seconds < TIMEOUT + 10
    check_resumes(1, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('fail', 'a fault of this rank'),
        ('SIGKILL', r'Signal 9 \(SIGKILL\)'),
        ('hang', r'in hang'),
        ('kill_worker', WORKER_DIED),
        ('hang_worker', '_try_get_data'),
    ],
)
def test_fault_of_one_of_two_processes(tmp_path, what, message, rank):
    code, log, seconds = run_into(2, tmp_path, what=what, rank=rank)
    assert code > 0, log
    assert re.search(message, log), log
    assert seconds < TIMEOUT + 10
    check_resumes(2, tmp_path)


@pytest.mark.long
def test_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [*torchrun(2, f'--master-port={port}'), str(ROOT / 'tests/harness/toy.py'), str(tmp_path)]
        done = subprocess.run(
            [sys.executable, *command], env=environment(), capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.returncode > 0
    assert str(port) in done.stderr
    assert 'EADDRINUSE' in done.stderr or 'in use' in done.stderr
