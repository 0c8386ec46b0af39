"""Torch on one thread, for modules that start processes or train: import the fixture."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that are started; several wait for one another at every operation, beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
