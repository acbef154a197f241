"""Files that are complete or absent, folders of one writer, and which checkpoint a run resumes."""

import os
import re
import resource
import signal
import subprocess
import sys

import pytest
import torch

from mmvisiongru.checkpoint import find_checkpoint, load_checkpoint_file
from mmvisiongru.errors import InputError
from mmvisiongru.files import UNFINISHED, check_folder, lock_folder, new_file, write_text
from tests.harness.children import environment, in_child


def save(path, iteration=5, fill=1.0, age=None):
    """Write a small checkpoint of a run, so many seconds ago."""
    content = dict(meta=dict(iter=iteration), message_hub={}, state_dict={'w': torch.full((300,), fill)})
    with new_file(str(path)) as unfinished:
        torch.save(content, unfinished)
    if age:
        os.utime(path, (path.stat().st_mtime - age,) * 2)


def found(folder) -> tuple[str | None, list[str]]:
    """The name of the checkpoint that is resumed, and what is logged."""
    checkpoint, notes = find_checkpoint(str(folder))
    if checkpoint is None:
        return None, notes
    assert checkpoint.meta['iter'] == int(re.search(r'\d+', os.path.basename(checkpoint.path))[0])
    return os.path.relpath(checkpoint.path, folder), notes


def test_killed_at_any_byte_of_a_write(tmp_path):
    path = tmp_path / 'iter_5.pth'
    save(path, 5)
    size = path.stat().st_size
    for limit in range(0, size, max(1, size // 50)):

        def write(limit=limit):
            # The kernel kills a process that writes beyond this byte of a file.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save(path, 6, fill=2.0)

        assert in_child(write) == -signal.SIGXFSZ
        assert load_checkpoint_file(str(path))['meta']['iter'] == 5
        assert len(list(tmp_path.iterdir())) == 2
        # The next run takes the lock and deletes what the killed one was writing.
        os.close(lock_folder(str(tmp_path)))
        (tmp_path / '.lock').unlink()
    assert [p.name for p in tmp_path.iterdir()] == ['iter_5.pth']


def test_full_disk_loses_nothing(tmp_path):
    path = tmp_path / 'iter_5.pth'
    save(path, 5)
    before = path.read_bytes()
    (tmp_path / f'.iter_5.pth.{os.getpid()}{UNFINISHED}').symlink_to('/dev/full')
    with pytest.raises(InputError, match=r'iter_5\.pth could not be written: No space left on device'):
        write_text(str(path), 'x')
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['iter_5.pth']


def test_file_too_large_loses_nothing(tmp_path):
    write_text(str(tmp_path / 'a'), 'old')

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(InputError, match='a could not be written: File too large'):
            write_text(str(tmp_path / 'a'), 'new' * 100)
        os.kill(os.getpid(), signal.SIGUSR1)

    assert in_child(write) == -signal.SIGUSR1
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('a', 'old')]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'folder .*file/work cannot be written: Not a directory'):
        check_folder(str(tmp_path / 'file/work'))
    check_folder(str(tmp_path / 'new/work'))
    assert list((tmp_path / 'new/work').iterdir()) == []


DAMAGE = {
    'empty': lambda data: b'',
    'cut short': lambda data: data[: len(data) // 2],
    'flipped': lambda data: data[:-1500] + bytes([data[-1500] ^ 1]) + data[-1499:],
    'of something else': lambda data: b'<html>not found</html>',
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_newest_checkpoint_is_skipped(tmp_path, damage):
    for i in (9, 10):
        save(tmp_path / f'iter_{i}.pth', i)
    save(tmp_path / 'best_mIoU_iter_11.pth', 11)
    newest = tmp_path / 'iter_10.pth'
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    write_text(str(tmp_path / 'last_checkpoint'), str(newest))
    path, notes = found(tmp_path)
    assert path == 'iter_9.pth'
    assert str(newest) in notes[0]


@pytest.mark.parametrize(
    'last', [None, '', 'iter_9.pth', '/moved/from/iter_10.pth', '/gone/iter_3.pth', 'x\0']
)
def test_killed_before_last_checkpoint_was_written(tmp_path, last):
    save(tmp_path / 'iter_9.pth', 9, age=10)
    if last is not None:
        write_text(str(tmp_path / 'last_checkpoint'), last)
        os.utime(tmp_path / 'last_checkpoint', (1, (tmp_path / 'iter_9.pth').stat().st_mtime + 1))
    save(tmp_path / 'iter_10.pth', 10)
    assert found(tmp_path)[0] == 'iter_10.pth'


@pytest.mark.parametrize('last', [None, 'iter_8.pth'])
def test_older_file_with_more_iterations(tmp_path, last):
    """Of another run in this folder, or the tail of one that was resumed from an earlier file."""
    save(tmp_path / 'iter_16.pth', 16, age=100)
    save(tmp_path / 'iter_4.pth', 4, age=50)
    save(tmp_path / 'iter_8.pth', 8, age=20)
    if last:
        write_text(str(tmp_path / 'last_checkpoint'), last)
    path, notes = found(tmp_path)
    assert path == 'iter_8.pth'
    assert any('iter_16.pth' in note and 'iter_8.pth' in note for note in notes)


def test_copied_folder_without_times(tmp_path):
    """Copied in any order: last_checkpoint tells which is the newest."""
    write_text(str(tmp_path / 'last_checkpoint'), '/elsewhere/iter_8.pth')
    for age, i in ((30, 8), (20, 4)):
        save(tmp_path / f'iter_{i}.pth', i, age=-age)
    assert found(tmp_path) == ('iter_8.pth', [])


def test_checkpoints_in_another_folder(tmp_path):
    (tmp_path / 'out').mkdir()
    save(tmp_path / 'out/epoch_2.pth', 2)
    (tmp_path / 'work').mkdir()
    write_text(str(tmp_path / 'work/last_checkpoint'), str(tmp_path / 'out/epoch_2.pth'))
    assert found(tmp_path / 'work') == ('../out/epoch_2.pth', [])


def test_nothing_to_resume(tmp_path):
    torch.save({'state_dict': {'w': torch.zeros(1)}}, tmp_path / 'pretrained.pth')
    assert found(tmp_path) == found(tmp_path / 'none') == (None, [])


LOCKER = """
import os, sys, time
from mmvisiongru.files import lock_folder
lock_folder(sys.argv[1])
# A dataloader worker, which outlives a killed run for a moment.
if os.fork() == 0:
    os.close(1)
    time.sleep(60)
print(flush=True)
time.sleep(60)
"""


def test_lock_names_the_other_process_and_ends_with_it(tmp_path):
    cut_off = tmp_path / f'.iter_9.pth.{os.getpid()}{UNFINISHED}'
    others = [tmp_path / f'.{name}{UNFINISHED}' for name in (f'iter_9.pth.{os.getppid()}', 'a.json.1')]
    for file in (cut_off, *others):
        file.write_text('x')
    process = subprocess.Popen(
        [sys.executable, '-c', LOCKER, str(tmp_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline()
    try:
        with pytest.raises(
            InputError, match=rf'{tmp_path} is in use by process {process.pid} on {os.uname().nodename}'
        ):
            lock_folder(str(tmp_path))
        process.kill()
        process.wait()
        os.close(lock_folder(str(tmp_path)))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert not cut_off.exists()
    assert all(file.exists() for file in others)


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / '.lock').mkdir()
    with pytest.raises(InputError, match=rf'{tmp_path}/\.lock cannot be written: .*--work-dir'):
        lock_folder(str(tmp_path))
