"""Fixtures of the tests of models."""

import pytest
import torch
from torch import distributed as dist


@pytest.fixture
def process_group(tmp_path):
    """A process group of one process, in which torch warns each time."""
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    # Not once per process: an earlier test must not hide a warning.
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)
    dist.destroy_process_group()
