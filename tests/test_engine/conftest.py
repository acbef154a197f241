"""What the tests of the engine share."""

import pytest
import torch
from mmengine.runner import CheckpointLoader


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """Keep what a ReliableRunner changes in mmengine to one test, and the toy runs on one thread."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
