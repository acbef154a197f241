"""What the tests share: the repository on the path, and no state of mmengine from test to test."""

import gc
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from mmengine.visualization import Visualizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pytest.register_assert_rewrite('tests.harness')
from mmvisiongru.mmcv_ops import provide_ops  # noqa: E402
from tests.harness import lacks_mmseg  # noqa: E402

if find_spec('mmdet'):
    # Before any test imports mmpretrain, which imports mmdet.
    provide_ops()

# The models of the tests are so small that more threads only wait for each other.
torch.set_num_threads(1)
# Files that are about segmentors.
SEGMENTORS = ('heads', 'odd_sizes', 'replacements')
collect_ignore = [f'test_models/test_{name}.py' for name in SEGMENTORS if lacks_mmseg()]


@pytest.fixture(autouse=True)
def _forget_mmengine_globals():
    """Let no test see the default scope, logger or buffers that a Runner of an earlier one made."""
    yield
    # Each class keeps its own instances, the visualizers of the tasks too.
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer, *Visualizer.__subclasses__()):
        manager._instance_dict.clear()


@pytest.fixture(autouse=True)
def _forget_refusal(monkeypatch):
    """Undo after each test what refuse_pickled_code() changes in mmengine and torch."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')


@pytest.fixture(scope='module', autouse=True)
def _collect_what_tests_make_alone():
    """Keep the imported libraries out of gc.collect(), which mmengine calls for every data set."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """A python whose processes start at once."""
    from tests.harness.forked import forked_python

    with forked_python(tmp_path_factory.mktemp('python')) as path:
        yield path


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    """Gives the folder of a toy run that nothing interrupted."""
    from tests.harness.toy import run

    @cache
    def call(by_epoch=False, **settings):
        run(folder := tmp_path_factory.mktemp('whole'), by_epoch=by_epoch, **settings)
        return folder

    return call


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The working folder of a test, with small data of each task, ``ade`` and ``inet``."""
    from tests.harness.small_runs import make_folders, make_scenes

    path = tmp_path / 'a folder'
    make_scenes(path / 'ade')
    make_folders(path / 'inet')
    monkeypatch.chdir(path)
    # Asking the compilers of a machine for their versions takes longer than a run.
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)
    return path
