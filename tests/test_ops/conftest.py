"""Fixtures of the operators' tests."""

import pytest
import torch


@pytest.fixture
def nan_in_new_memory():
    """Every new allocation of the framework holds NaN, so that an element left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1000).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
