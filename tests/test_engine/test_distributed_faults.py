"""A process that fails, dies or hangs ends the whole run in time, says why, and the same command resumes."""

import ctypes
import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from mmvisiongru.checkpoint import find_checkpoint, load_checkpoint_file
from mmvisiongru.engine.hooks import StallHook
from mmvisiongru.engine.signals import protect_workers
from tests.harness.children import PATIENCE, environment, in_child
from tests.harness.slurm import slurm, why_not
from tests.harness.small_runs import SEGMENTATION, TOOLS, write_config
from tests.harness.toy import assert_same, finish, run, start

# Seconds, within which a run of two starts.
TIMEOUT = 8


def test_stalled_process_ends_and_shows_where(tmp_path):
    """Also one that waits where Python handles no signal, as in a collective operation."""

    def stall():
        stderr = os.open(tmp_path / 'stderr', os.O_WRONLY | os.O_CREAT)
        os.dup2(stderr, sys.__stderr__.fileno())
        hook = StallHook(timeout=0.5)
        hook.before_train(None)
        ctypes.PyDLL(None).sleep(60)

    assert in_child(stall) == 1
    assert 'in stall' in (tmp_path / 'stderr').read_text()


@pytest.mark.parametrize(
    ('what', 'during', 'by_epoch'),
    [
        ('signal_all', 'train', False),
        ('signal_all', 'val', False),
        ('signal_and_kill_workers', 'train', True),
        ('signal_and_kill_workers', 'between', True),
        ('signal_and_kill_workers', 'val', False),
    ],
)
def test_signal_that_reaches_the_workers(tmp_path, whole, python, what, during, by_epoch):
    """As slurm, a control group or a container sends it: the run saves, and resumes exactly."""
    settings = dict(by_epoch=by_epoch, workers=2, interval=99, **{'val_dataloader.num_workers': 2})
    at = 12 if during == 'val' else 8

    fault = dict(at=at, what=what, during=during)
    stopped = start(1, tmp_path / 'stopped', python, fault=fault, **settings)
    assert finish(stopped)[0] == 128 + signal.SIGTERM
    checkpoint, notes = find_checkpoint(str(tmp_path / 'stopped'))
    # The next iteration is done if its batch was there already.
    assert (checkpoint.meta['iter'] in (at, at + (during == 'between')), notes) == (True, [])
    run(tmp_path / 'stopped', by_epoch=by_epoch, interval=99, resume=True)
    # The whole run had no workers: they change nothing.
    assert_same(whole(by_epoch, interval=99), tmp_path / 'stopped', by_epoch)


class Hanging(Dataset):
    """A data set whose sample 1 never comes."""

    def __getitem__(self, index):
        time.sleep(100 * index)
        return index

    def __len__(self):
        return 2


def running(pid: int) -> bool:
    """Whether a process runs; one that nobody waits for stays as a zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.parametrize('how', ['shutdown', 'parent killed'])
def test_worker_that_outlives_a_signal_ends_with_its_parent(tmp_path, how):
    """Even one that hangs, which torch ends by SIGTERM."""

    def load():
        loader = DataLoader(Hanging(), num_workers=1)
        protect_workers(loader)
        # A fork knows the children of its parent too, such as workers that ended slowly.
        others = multiprocessing.active_children()
        samples = iter(loader)
        next(samples)
        (worker,) = {*multiprocessing.active_children()} - {*others}
        (tmp_path / 'pid').write_text(str(worker.pid))
        for name in ('TERM', 'INT', 'USR1'):
            subprocess.run(['kill', '-s', name, str(worker.pid)])
        time.sleep(0.5)
        assert running(worker.pid)
        if how == 'parent killed':
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(load) == (-signal.SIGKILL if how == 'parent killed' else 0)
    end = time.monotonic() + PATIENCE
    while running(int((tmp_path / 'pid').read_text())):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.parametrize(('processes', 'rank'), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('hang', r'in hang'),
        ('hang_worker', '_try_get_data'),
        # torch notices in one of two ways.
        ('kill_worker', r'DataLoader worker \(pid.*\) is killed by signal: Killed|ConnectionResetError'),
        ('fail', 'a fault of this rank'),
        ('SIGKILL', r'Signal 9 \(SIGKILL\)'),
    ],
)
def test_fault_of_one_process(tmp_path, what, message, processes, rank):
    """All processes end within the timeout and 10 s, and the same command resumes."""
    settings = {'default_hooks.stall': dict(type='mmvisiongru.StallHook', timeout=TIMEOUT)}
    if processes > 1:
        settings['env_cfg'] = dict(dist_cfg=dict(timeout=TIMEOUT))
    workers, fault = int('worker' in what), dict(at=8, what=what, rank=rank)
    process = start(processes, tmp_path, workers=workers, fault=fault, **settings)
    while not (tmp_path / 'iter_6.pth').exists() and process.poll() is None:
        time.sleep(0.1)
    since = time.monotonic()
    code, log = finish(process)
    assert time.monotonic() - since < TIMEOUT + 10
    assert code == -signal.SIGKILL if (processes, what) == (1, 'SIGKILL') else code > 0, log
    assert code < 0 or re.search(message, log), log
    code, log = finish(start(processes, tmp_path, resume=True))
    assert code == 0, log
    assert load_checkpoint_file(str(tmp_path / 'iter_18.pth'))['meta']['iter'] == 18


@pytest.mark.long
def test_slurm_cancels_a_run_of_two_nodes_and_it_resumes(tmp_path, workplace):
    if reason := why_not():
        pytest.skip(f'no slurm: {reason}')
    config = write_config(workplace / 'config.py', SEGMENTATION, workplace / 'ade').name
    settings = ['train_dataloader.num_workers=2', 'val_dataloader.num_workers=1', 'train_cfg.val_interval=7']
    settings = ['--cfg-options', 'default_hooks.checkpoint.interval=100000', *settings]
    sizes = dict(GPUS='2', GPUS_PER_NODE='1', CPUS_PER_TASK='1', PYTHON=sys.executable)
    with slurm(tmp_path) as variables:

        def submit(script: str, *args: str) -> subprocess.Popen:
            command = [str(TOOLS / script), 'part', 'name', config, *args]
            pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            return subprocess.Popen(command, env=environment(**variables, **sizes), **pipes)

        job = submit('slurm_train.sh', *settings, 'train_cfg.max_iters=100000')
        log = ''
        while 'Iter(train) [    30/' not in log:
            log += (line := job.stdout.readline())
            assert line, log
        subprocess.run(['scancel', '--name=name'], env=environment(**variables), check=True)
        code, rest = finish(job)
        assert code == 128 + signal.SIGTERM, rest
        stopped = int(re.findall(r'stopped by SIGTERM after iteration (\d+): saved', rest)[-1])

        end = stopped + 5
        code, log = finish(submit('slurm_train.sh', '--resume', *settings, f'train_cfg.max_iters={end}'))
        assert code == 0, log
        assert f'resumed epoch: 0, iter: {stopped}' in log
        assert re.search(rf'Iter\(train\) \[ *{stopped + 1}/', log)
        checkpoint = f'work_dirs/config/iter_{end}.pth'
        code, log = finish(submit('slurm_test.sh', checkpoint, '--work-dir', 'two'))
        assert code == 0, log
    runpy.run_path(str(TOOLS / 'test.py'))['main']([config, checkpoint, '--work-dir', 'one'])
    two, one = (json.loads(next(Path(folder).glob('*/*.json')).read_text()) for folder in ('two', 'one'))
    assert [two[name] for name in ('aAcc', 'mIoU')] == [one[name] for name in ('aAcc', 'mIoU')]
