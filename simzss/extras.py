"""Packages that only an extra of this one installs."""

import importlib
from typing import Any

from simzss.errors import ConfigError


def need(module: str, extra: str) -> Any:
    """Import a module when it is first used.

    Args:
        module: dotted name.
        extra: of `pyproject.toml`, that installs it.

    Raises:
        ConfigError: it is not installed; one line that says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} cannot be imported ({error}): pip install 'simzss[{extra}]'") from error
