"""Checkpoints of a run: one is whole wherever the process dies, and resuming finds it."""

import itertools
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from mmvisiongru.checkpoint import find_checkpoint, load_checkpoint_file
from mmvisiongru.errors import InputError
from mmvisiongru.files import UNFINISHED
from tests.harness.children import in_child
from tests.harness.toy import ToyMetric, start, toy_runner


def die_at_file_operation(number: int) -> None:
    """Let this process be killed right before its n-th opening, renaming or removing of a file."""
    left = itertools.count(number, -1)

    def count(event, args):
        if event in ('open', 'os.rename', 'os.remove') and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def die_beyond_byte(number: int) -> None:
    """Let the kernel kill this process when it writes more than so much to any file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ('keep', 'bytes_tried'), [(1, 8), *(pytest.param(keep, 50, marks=LONG) for keep in (1, 2, -1))]
)
def test_killed_anywhere_in_a_save(tmp_path, keep, bytes_tried):
    work, copy = tmp_path / 'work', tmp_path / 'copy'
    runner = toy_runner(work, iters=9, keep=keep)
    runner.train()
    hook = next(h for h in runner.hooks if hasattr(h, 'save_stopped'))

    def save(fault, number):
        """Save, as the next of the run, one that is also the best."""
        hook.out_dir = runner._work_dir = str(copy)
        hook.best_ckpt_path = str(copy / Path(hook.best_ckpt_path).name)
        runner.train_loop._iter = 11
        fault(number)
        hook._save_checkpoint(runner)
        runner.train_loop._iter = 12
        hook._save_best_checkpoint(runner, dict(acc=2.0))

    def check(fault, number) -> int:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(work, copy)
        died = in_child(lambda: save(fault, number))
        path = find_checkpoint(str(copy))[0].path
        # The new one, or the one before if the new one is not there.
        assert path == str(copy / ('iter_12.pth' if (copy / 'iter_12.pth').exists() else 'iter_9.pth'))
        assert load_checkpoint_file(path)['meta']['iter'] == int(Path(path).stem[5:])
        assert [load_checkpoint_file(str(p)) for p in copy.glob('best_*.pth')]
        # What mmengine itself would resume is there too.
        assert load_checkpoint_file((copy / 'last_checkpoint').read_text().replace(str(work), str(copy)))
        return died

    def numbers() -> list[int]:
        return sorted(int(p.stem[5:]) for p in copy.glob('iter_*.pth'))

    assert check(lambda number: None, None) == 0
    size = (copy / 'iter_12.pth').stat().st_size
    files = {1: [9], 2: [6, 9], -1: [3, 6, 9]}[keep]
    # From the first byte to the last but one, which belongs to the checksum.
    for i in range(bytes_tried):
        assert check(die_beyond_byte, i * (size - 1) // (bytes_tried - 1)) == -signal.SIGXFSZ
        # The best file is a little longer, so that the last may be the byte of that.
        assert numbers() == files or 12 in numbers()
    number = 0
    while check(die_at_file_operation, number) == -signal.SIGKILL:
        number += 1
    # Three files written, one of them twice, and what they replace removed.
    assert number > 12
    assert numbers() == [*files[1 if keep > 0 else 0 :], 12]
    assert [p.name for p in copy.glob('best_*.pth')] == ['best_acc_iter_12.pth']


def test_outdated_files_go_after_a_kill(tmp_path):
    """A run that was killed between saving and removing does the removing when it is resumed."""
    runner = toy_runner(tmp_path, iters=9, keep=1)
    runner.train()
    hook = next(h for h in runner.hooks if hasattr(h, 'save_stopped'))

    def save():
        runner.train_loop._iter = 11
        hook._remove = lambda name: os.kill(os.getpid(), signal.SIGKILL)
        hook._save_checkpoint(runner)

    assert in_child(save) == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.glob('iter_*.pth')) == ['iter_12.pth', 'iter_9.pth']
    toy_runner(tmp_path, iters=15, keep=1, resume=True, resume_schedule='config').train()
    assert [p.name for p in tmp_path.glob('iter_*.pth')] == ['iter_15.pth']


def test_copied_run_leaves_the_best_file_of_the_first_alone(tmp_path, monkeypatch):
    first, copy = tmp_path / 'first', tmp_path / 'copy'
    toy_runner(first, iters=9).train()
    (best,) = first.glob('best_*.pth')
    shutil.copytree(first, copy)
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda *args: dict(acc=2.0))
    toy_runner(copy, iters=12, resume=True, resume_schedule='config').train()
    assert best.exists()
    assert [path.name for path in copy.glob('best_*.pth')] == ['best_acc_iter_12.pth']


def test_a_schedule_that_is_not_saved_and_a_misspelt_argument_or_metric_are_refused(tmp_path):
    with pytest.raises(TypeError, match='max_keep_ckpt'):
        toy_runner(tmp_path, **{'default_hooks.checkpoint.max_keep_ckpt': 3})
    for key, value in (('save_param_scheduler', False), ('save_best', 'mIoU')):
        with pytest.raises(InputError, match=rf'default_hooks\.checkpoint\.{key}={value!r}'):
            toy_runner(tmp_path, **{f'default_hooks.checkpoint.{key}': value}).train()


def test_second_run_in_a_folder_is_refused(tmp_path):
    unfinished = [tmp_path / f'.iter_9.pth.{pid}{UNFINISHED}' for pid in (os.getpid(), os.getppid())]
    for file in unfinished:
        file.write_text('x')
    # Of a killed process, and of one that runs.
    first = start(1, tmp_path, iters=10**6, workers=1)
    while not (tmp_path / 'last_checkpoint').exists():
        assert first.poll() is None
        time.sleep(0.1)
    try:
        with pytest.raises(InputError, match=rf'{tmp_path} is in use by process {first.pid} on '):
            toy_runner(tmp_path).train()
    finally:
        first.kill()
    # The lock ends with the process, though its worker lives on for a moment.
    toy_runner(tmp_path / 'other', iters=1).train()
    toy_runner(tmp_path, iters=1).train()
    assert [file.exists() for file in unfinished] == [False, True]
    first.communicate()
