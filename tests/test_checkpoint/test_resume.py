"""Files that are complete or absent, folders of one writer, and which checkpoint a run resumes."""

import os
import re
import resource
import signal

import pytest
import torch

from mmvisiongru.checkpoint import find_checkpoint
from mmvisiongru.errors import InputError
from mmvisiongru.files import UNFINISHED, check_folder, lock_folder, new_file, write_text
from tests.harness.children import in_child


def save(path, iteration=5, fill=1.0, age=None):
    """Write a small checkpoint of a run, so many seconds ago."""
    state = dict(message_hub={}, optimizer={}, state_dict={'w': torch.full((300,), fill)})
    with new_file(str(path)) as unfinished:
        torch.save(dict(state, meta=dict(iter=iteration)), unfinished)
    if age:
        os.utime(path, (path.stat().st_mtime - age,) * 2)


def found(folder) -> tuple[str | None, list[str]]:
    """The name of the checkpoint that is resumed, and what is logged."""
    checkpoint, notes = find_checkpoint(str(folder))
    if checkpoint is None:
        return None, notes
    assert checkpoint.meta['iter'] == int(re.search(r'\d+', os.path.basename(checkpoint.path))[0])
    return os.path.relpath(checkpoint.path, folder), notes


def test_full_disk_or_too_large_a_file_loses_nothing(tmp_path):
    path = tmp_path / 'a'
    write_text(str(path), 'old')
    (tmp_path / f'.a.{os.getpid()}{UNFINISHED}').symlink_to('/dev/full')
    with pytest.raises(InputError, match='a could not be written: No space left on device'):
        write_text(str(path), 'new')

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(InputError, match='a could not be written: File too large'):
            write_text(str(path), 'new' * 100)
        os.kill(os.getpid(), signal.SIGUSR1)

    assert in_child(write) == -signal.SIGUSR1
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('a', 'old')]


def test_a_folder_that_can_be_written_is_left_empty(tmp_path):
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
    torch.save({'state_dict': {'w': torch.zeros(1)}}, tmp_path / 'pretrained.pth')
    assert found(tmp_path) == found(tmp_path / 'none') == (None, [])
    torch.save({'state_dict': {'w': torch.zeros(1)}, 'message_hub': {}}, tmp_path / 'iter_1.pth')
    assert 'iter_1.pth' in found(tmp_path)[1][0]
    (tmp_path / 'out').mkdir()
    save(tmp_path / 'out/epoch_2.pth', 2)
    write_text(str(tmp_path / 'last_checkpoint'), str(tmp_path / 'out/epoch_2.pth'))
    assert found(tmp_path) == ('out/epoch_2.pth', [])


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / '.lock').mkdir()
    with pytest.raises(InputError, match=rf'{tmp_path}/\.lock cannot be written: .*--work-dir'):
        lock_folder(str(tmp_path))
