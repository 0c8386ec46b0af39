"""Fixtures of all tests."""

import logging

import pytest


@pytest.fixture(autouse=True)
def levels_of_loggers():
    """Put back the levels that running a verb inside a test sets."""
    before = {name: logging.getLogger(name).level for name in ("simzss", "data_prep", "__main__")}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
