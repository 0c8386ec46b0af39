"""YAML of strangers: plain values alone, and no more of them than a person writes."""

import re
from pathlib import Path
from typing import Any

import yaml

from simzss.errors import ConfigError

_DEEPEST = 50
_MOST = 100_000  # values, those that an alias stands for counted each time
_RESOLVER = re.compile(r"\$\{.*:", re.S)


def read_yaml(text: str, plain_text: bool = False) -> Any:
    """Return the value of a YAML text.

    Args:
        text: no tag in it makes an object of another type.
        plain_text: leave every scalar text.

    Raises:
        yaml.YAMLError: it is none, or its aliases or its depth would fill the memory.
    """
    loader = yaml.BaseLoader if plain_text else yaml.SafeLoader
    require_bounded(text)
    return yaml.load(text, Loader=loader)


def require_bounded(text: str) -> None:
    """Refuse a text that is small and stands for much, before any value of it is made.

    Raises:
        yaml.YAMLError: it is too deep, or has too many values; or it is no YAML.
    """
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count when it began
    sizes: dict[str, int] = {}
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        if len(open_nodes) > _DEEPEST:
            raise yaml.YAMLError(f"more than {_DEEPEST} levels")
        if count > _MOST:
            raise yaml.YAMLError(f"more than {_MOST} values")


def require_bounded_files(folder: Path) -> None:
    """Refuse a folder of presets with a file that would fill the memory: hydra reads the files itself.

    Raises:
        ConfigError: names the file.
    """
    for path in sorted(folder.rglob("*.yaml")):
        try:
            require_bounded(path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError:
            pass  # one that nobody asks for may be anything; of the others hydra says it
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def require_no_resolver(values: Any, key: str = "") -> None:
    """Refuse `${oc.env:NAME}` and its like: what the environment holds, a password maybe, would land in files of runs.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            require_no_resolver(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            require_no_resolver(value, key)
    elif isinstance(values, str) and _RESOLVER.search(values):
        raise ConfigError(f"{key}={values}: ${{…:…}} is not supported; give the value itself")
