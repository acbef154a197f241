"""What the tests of the engine share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The toy runs are so small that more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
