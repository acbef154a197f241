"""What the tests share: the repository on the path, and no state of mmengine from test to test."""

import sys
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def forget_mmengine_globals():
    """Let no test see the default scope, logger or buffers that a Runner of an earlier one made."""
    yield
    # Each class keeps its own instances, the visualizers of the tasks too.
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer, *Visualizer.__subclasses__()):
        manager._instance_dict.clear()
