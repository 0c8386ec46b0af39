"""Torch on one thread, for modules that start processes or train: import the fixture."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Run on one thread, as the processes that are started: several wait for one another at every operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
