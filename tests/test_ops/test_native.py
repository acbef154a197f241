"""The compiled libraries of the CPU backends: what they are built from, and which files are never loaded."""

import logging
import os
import shutil

import pytest
import torch

from mmvisiongru.ops import bi_wkv, mingru_scan, native, runnable_backends

pytestmark = pytest.mark.skipif('cpu' not in runnable_backends(), reason='no C++ compiler on this machine')


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache that begins empty, and a compiler that writes the library of this machine at once."""
    compiler, built = tmp_path / 'g++', native.library('mingru_scan')[0]._name
    compiler.write_text(f'#!/bin/sh\nfor target; do :; done\nexec cp "{built}" "$target"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv('CXX', str(compiler))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    native.library.cache_clear()
    yield tmp_path / 'mmvisiongru'
    native.library.cache_clear()


@pytest.fixture
def path(own_cache):
    """A library in that cache."""
    native.library('mingru_scan')
    (path,) = own_cache.iterdir()
    return path


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == 'mmvisiongru']


def assert_loads(path, caplog, problem=''):
    """The library of ``path`` loads, once it was built again if there is a problem with what lies there."""
    native.library.cache_clear()
    before = path.lstat().st_ino
    with caplog.at_level(logging.WARNING, logger='mmvisiongru'):
        assert native.library('mingru_scan')[0].mingru_forward
    assert len(messages(caplog)) == bool(problem)
    assert all(str(path) in line and problem in line for line in messages(caplog))
    assert (path.lstat().st_ino != before) == bool(problem)
    caplog.clear()


@pytest.mark.parametrize('library', ['mingru_scan', 'bi_wkv'])
@pytest.mark.parametrize('file', ['its own', 'map.h'])
def test_a_changed_source_or_header_is_another_library(monkeypatch, tmp_path, own_cache, library, file):
    shutil.copytree(native.SOURCES, tmp_path / 'csrc')
    monkeypatch.setattr(native, 'SOURCES', tmp_path / 'csrc')
    assert native.library(library)[0]
    with open(tmp_path / 'csrc' / (f'{library}.cpp' if file == 'its own' else file), 'a') as source:
        source.write('// changed\n')
    native.library.cache_clear()
    assert native.library(library)[0]
    assert len(list(own_cache.iterdir())) == 2


@pytest.mark.parametrize('damage', ['empty', 'cut', 'flipped'])
def test_a_damaged_library_is_built_again(path, caplog, damage):
    whole = path.read_bytes()
    flipped = bytes([*whole[:4000], whole[4000] ^ 1, *whole[4001:]])
    path.unlink()
    path.write_bytes({'empty': b'', 'cut': whole[: len(whole) // 2], 'flipped': flipped}[damage])
    assert_loads(path, caplog, 'damaged')
    assert_loads(path, caplog)


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='users and modes of POSIX')
class TestTrust:
    """Nothing is loaded that somebody else may have written."""

    def test_what_is_built_is_private(self, path):
        assert [p.lstat().st_mode & 0o077 for p in (path, path.parent)] == [0, 0]

    @pytest.mark.parametrize('what', [0o720, 0o702, 'link', 'another user'])
    def test_such_a_file_is_built_again(self, path, what, caplog, monkeypatch):
        lstat = os.lstat

        def of_another(name, **where):
            status = lstat(name, **where)
            return os.stat_result((*status[:4], status.st_uid + 1, *status[5:])) if name == path else status

        if what == 'another user':
            monkeypatch.setattr(native.os, 'lstat', of_another)
        elif what == 'link':
            path.symlink_to(path.rename(path.with_suffix('.elsewhere')))
        else:
            path.chmod(what)
        assert_loads(path, caplog, 'written by others' if isinstance(what, int) else what)
        if what != 'another user':
            assert_loads(path, caplog)
        assert not path.is_symlink()

    @pytest.mark.parametrize('what', ['written by others', 'link', 'another user'])
    def test_nothing_is_loaded_from_such_a_folder(self, path, what, monkeypatch, caplog):
        folder = path.parent
        if what == 'written by others':
            folder.chmod(0o770)
        elif what == 'link':
            folder.symlink_to(folder.rename(folder.with_name('elsewhere')))
        else:
            monkeypatch.setattr(native.os, 'geteuid', lambda: path.stat().st_uid + 1)
        native.library.cache_clear()
        loaded = []
        monkeypatch.setattr(native.ctypes, 'CDLL', loaded.append)
        with caplog.at_level(logging.INFO, logger='mmvisiongru'):
            library, reason = native.library('mingru_scan')
        assert (library, loaded) == (None, [])
        assert all(text in reason for text in (str(folder), what, 'XDG_CACHE_HOME'))
        assert '\n' not in reason
        assert messages(caplog)[0].endswith(reason)


@pytest.mark.parametrize('operator', ['scan', 'bi_wkv'])
def test_without_a_compiler_torch_is_taken_and_said_why(own_cache, monkeypatch, caplog, operator):
    call = dict(
        scan=lambda **x: mingru_scan(torch.ones(1, 2, 3), torch.ones(1, 2, 3), **x),
        bi_wkv=lambda **x: bi_wkv(torch.ones(3), torch.ones(3), *torch.ones(2, 1, 2, 3), **x),
    )[operator]
    monkeypatch.setattr(native.shutil, 'which', lambda name: None)
    with caplog.at_level(logging.INFO, logger='mmvisiongru'):
        assert call().isfinite().all()
        with pytest.raises(RuntimeError, match=rf"^{operator} backend 'cpu' cannot run on cpu.*\$CXX"):
            call(backend='cpu')
        call()
    (line,) = messages(caplog)
    assert all(text in line for text in ("'torch'", 'C++ compiler', '$CXX'))
