"""Files on disk: whole or not there, and every damage is found."""

import io
import os
import resource
import shutil
import signal
import zipfile

import pytest
import torch

from mmvisiongru.checkpoint import check_whole, find_checkpoint, load_checkpoint_file, seal
from mmvisiongru.errors import InputError
from mmvisiongru.files import UNFINISHED, check_folder, new_file, remove_unfinished, write_text
from tests.harness.children import in_child


def save(path, iteration=5, fill=1.0, sealed=True):
    """Write a small checkpoint of a run."""
    content = dict(
        meta=dict(iter=iteration, epoch=0),
        message_hub={},
        optimizer={},
        state_dict={'w': torch.full((300,), fill)},
    )
    with new_file(str(path)) as unfinished:
        # As mmengine writes it.
        data = io.BytesIO()
        torch.save(content, data)
        with open(unfinished, 'wb') as file:
            file.write(data.getvalue())
        if sealed:
            seal(unfinished, iteration)


def test_a_sealed_checkpoint_is_an_ordinary_one(tmp_path):
    path = str(tmp_path / 'a.pth')
    save(path)
    check_whole(path)
    assert torch.load(path, weights_only=True)['meta'] == dict(iter=5, epoch=0)
    assert torch.load(path, weights_only=True, mmap=True)['state_dict']['w'].sum() == 300
    assert zipfile.ZipFile(path).comment.startswith(b'iter=5 sha256=')
    shutil.move(path, tmp_path / 'b.pth')
    check_whole(str(tmp_path / 'b.pth'))


def test_every_flipped_lost_or_added_byte_is_found(tmp_path):
    path = str(tmp_path / 'a.pth')
    save(path)
    with open(path, 'rb') as file:
        good = file.read()
    for at in [*range(0, len(good) - 250, 11), *range(len(good) - 250, len(good))]:
        flipped = good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :]
        for damaged in (flipped, good[:at], good[:at] + b'x' + good[at:]):
            with open(path, 'wb') as file:
                file.write(damaged)
            with pytest.raises(InputError, match=r'a\.pth'):
                load_checkpoint_file(path)


def test_flipped_weights_without_a_seal_are_found(tmp_path):
    path = tmp_path / 'a.pth'
    save(path, sealed=False)
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(4).numpy().tobytes()) + 17] ^= 4
    path.write_bytes(data)
    # That torch does not notice is why this project looks.
    assert torch.load(path, weights_only=True)['state_dict']['w'].ne(1).sum() == 1
    with pytest.raises(InputError, match=r'a\.pth is damaged: .*data/0 does not fit its checksum'):
        load_checkpoint_file(str(path))


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

        assert in_child(write) == signal.SIGXFSZ
        assert find_checkpoint(str(tmp_path))[0] == str(path)
        assert load_checkpoint_file(str(path))['meta']['iter'] == 5
        assert len(list(tmp_path.iterdir())) == 2
        remove_unfinished(str(tmp_path), '.pth')
    assert [p.name for p in tmp_path.iterdir()] == ['iter_5.pth']


def test_full_disk_loses_nothing(tmp_path):
    path = tmp_path / 'iter_5.pth'
    save(path, 5)
    before = path.read_bytes()
    (tmp_path / f'.iter_5.pth{UNFINISHED}').symlink_to('/dev/full')
    with pytest.raises(InputError, match=r'iter_5\.pth could not be written: No space left on device;'):
        save(path, 6)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['iter_5.pth']


def test_file_too_large_loses_nothing(tmp_path):
    write_text(str(tmp_path / 'a'), 'old')

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(InputError, match='a could not be written: File too large'):
            write_text(str(tmp_path / 'a'), 'new' * 100)
        os.kill(os.getpid(), signal.SIGUSR1)

    assert in_child(write) == signal.SIGUSR1
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('a', 'old')]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'folder .*file/work cannot be made: Not a directory'):
        check_folder(str(tmp_path / 'file/work'))
    check_folder(str(tmp_path / 'new/work'))
    assert list((tmp_path / 'new/work').iterdir()) == []


DAMAGE = {
    'empty': lambda data: b'',
    'cut short': lambda data: data[: len(data) // 2],
    'flipped': lambda data: data[:700] + bytes([data[700] ^ 1]) + data[701:],
    'flipped seal': lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    'of something else': lambda data: b'<html>not found</html>',
}


# Without a seal, the bytes that two of them change are read by nothing.
@pytest.mark.parametrize(
    ('damage', 'sealed'), [(d, s) for d in DAMAGE for s in (True, False) if s or 'flipped' not in d]
)
def test_damaged_newest_checkpoint_is_passed_over(tmp_path, damage, sealed):
    for i in (9, 10):
        save(tmp_path / f'iter_{i}.pth', i, sealed=sealed)
    save(tmp_path / 'best_mIoU_iter_11.pth', 11)
    newest = tmp_path / 'iter_10.pth'
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    write_text(str(tmp_path / 'last_checkpoint'), str(newest))
    path, notes = find_checkpoint(str(tmp_path))
    assert path == str(tmp_path / 'iter_9.pth')
    assert notes[0].startswith(f'passed over: checkpoint {newest} ')


@pytest.mark.parametrize(
    'last', [None, '', 'iter_9.pth', '/moved/from/iter_10.pth', '/gone/iter_3.pth', 'x\0']
)
def test_last_checkpoint_is_a_hint(tmp_path, last):
    for i in (9, 10):
        save(tmp_path / f'iter_{i}.pth', i)
    if last is not None:
        write_text(str(tmp_path / 'last_checkpoint'), last)
    assert find_checkpoint(str(tmp_path))[0] == str(tmp_path / 'iter_10.pth')


def test_checkpoints_in_another_folder(tmp_path):
    (tmp_path / 'out').mkdir()
    save(tmp_path / 'out/epoch_2.pth', 2)
    (tmp_path / 'work').mkdir()
    write_text(str(tmp_path / 'work/last_checkpoint'), str(tmp_path / 'out/epoch_2.pth'))
    assert find_checkpoint(str(tmp_path / 'work')) == (str(tmp_path / 'out/epoch_2.pth'), [])


def test_nothing_to_resume(tmp_path):
    torch.save({'state_dict': {'w': torch.zeros(1)}}, tmp_path / 'pretrained.pth')
    assert find_checkpoint(str(tmp_path)) == (None, [])
    assert find_checkpoint(str(tmp_path / 'none')) == (None, [])
