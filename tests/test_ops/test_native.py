"""The compiled libraries of the CPU backends: what they are built from, and what a damaged one leads to."""

import ctypes
import logging
import shutil
from pathlib import Path

import pytest
import torch

from mmvisiongru.ops import bi_wkv, mingru_scan, native, runnable_backends
from mmvisiongru.ops.mingru import cpu_scan
from mmvisiongru.ops.native import Map, Shape
from mmvisiongru.ops.wkv import cpu_wkv

pytestmark = pytest.mark.skipif('cpu' not in runnable_backends(), reason='no C++ compiler on this machine')


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache that begins empty."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'mmvisiongru'


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The compiled scan."""
    root = tmp_path_factory.mktemp('cache')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(root))
        native._load('mingru_scan')
    (path,) = (root / 'mmvisiongru').iterdir()
    return path


@pytest.fixture
def path(built, own_cache):
    """A copy of it in the cache of this test."""
    own_cache.mkdir()
    return Path(shutil.copy(built, own_cache))


@pytest.mark.parametrize('library', ['mingru_scan', 'bi_wkv'])
@pytest.mark.parametrize('of_its_own', [True, False])
def test_a_changed_source_or_header_is_another_library(monkeypatch, tmp_path, library, of_its_own):
    file = f'{library}.cpp' if of_its_own else 'map.h'
    shutil.copytree(native.SOURCES, tmp_path / 'csrc')
    monkeypatch.setattr(native, 'SOURCES', tmp_path / 'csrc')
    before = native._cache_path(library, 'g++')
    with open(tmp_path / 'csrc' / file, 'a') as source:
        source.write('// changed\n')
    assert native._cache_path(library, 'g++') != before


@pytest.mark.parametrize('damage', ['empty', 'cut', 'flipped'])
def test_a_damaged_library_is_built_again(path, caplog, damage):
    whole = path.read_bytes()
    flipped = bytes([*whole[:4000], whole[4000] ^ 1, *whole[4001:]])
    path.unlink()
    path.write_bytes({'empty': b'', 'cut': whole[: len(whole) // 2], 'flipped': flipped}[damage])
    with caplog.at_level(logging.WARNING, logger='mmvisiongru'):
        assert native._load('mingru_scan').mingru_forward
    assert [record.getMessage() for record in caplog.records] == [f'{path} is damaged and is built again']
    assert native._is_whole(path)
    caplog.clear()
    native._load('mingru_scan')
    assert not caplog.records


def test_another_process_builds_a_damaged_library_at_the_same_time(path, monkeypatch):
    whole, look = path.read_bytes(), native._is_whole
    path.unlink()
    path.write_bytes(whole[:1000])

    def look_while_the_other_mends(path):
        found = look(path)
        path.unlink()
        return found

    monkeypatch.setattr(native, '_is_whole', look_while_the_other_mends)
    assert native._load('mingru_scan').mingru_forward


def test_calls_with_wrong_arguments_fail():
    x = torch.zeros(1, 1, 1, 1, 1)
    flags = (ctypes.c_uint8 * 1)(0)
    head = (0, 0, Shape(*x.shape), flags, flags, 1)
    forward = cpu_scan._functions()['forward']
    forward(*head, Map.of(x), Map.of(x), Map.of(x), None)
    with pytest.raises(TypeError, match='takes at least'):
        forward(*head, Map.of(x), Map.of(x))
    with pytest.raises(ctypes.ArgumentError):
        forward(*head, Map.of(x), Map.of(x), x.data_ptr(), None)
    # The operator of a library of its own is called like it.
    head = (0, cpu_wkv.Sizes(1, 1, 1), 1, cpu_wkv.Decay(), None, Map.of(x), Map.of(x))
    with pytest.raises(TypeError, match='takes at least'):
        cpu_wkv._functions()['backward'](*head, Map.of(x), None)


@pytest.mark.parametrize('operator', ['scan', 'bi_wkv'])
def test_without_a_compiler_torch_is_taken_and_said_why(monkeypatch, own_cache, caplog, operator):
    scan = dict(
        scan=lambda **x: mingru_scan(torch.ones(1, 2, 3), torch.ones(1, 2, 3), **x),
        bi_wkv=lambda **x: bi_wkv(torch.ones(3), torch.ones(3), *torch.ones(2, 1, 2, 3), **x),
    )[operator]
    native.library.cache_clear()
    monkeypatch.setattr(native.shutil, 'which', lambda name: None)
    with caplog.at_level(logging.INFO, logger='mmvisiongru'):
        assert scan().isfinite().all()
        with pytest.raises(
            RuntimeError, match=rf"^{operator} backend 'cpu' cannot run on cpu.*no C\+\+ compiler"
        ):
            scan(backend='cpu')
        scan()
    assert [r.getMessage() for r in caplog.records if 'compiled' in r.getMessage()] == [
        f"compiled {'mingru_scan' if operator == 'scan' else operator} is not available, 'torch' is used: "
        'no C++ compiler (g++, clang++ or $CXX) on PATH'
    ]
    native.library.cache_clear()
