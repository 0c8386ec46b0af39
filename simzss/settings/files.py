"""Settings as files: what `config=FILE` reads and every run writes."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from simzss.atomic import atomic_write
from simzss.errors import ConfigError
from simzss.settings.base import Settings
from simzss.settings.messages import missing_keys


def to_yaml(settings: Settings) -> str:
    """Return settings as YAML that `config=FILE` reads."""
    return yaml.safe_dump(settings.plain(), sort_keys=False, allow_unicode=True, width=120)


def save(settings: Settings, path: Path) -> None:
    """Write settings as YAML.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, to_yaml(settings).encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error


def with_placeholders(cls: type[Settings], values: dict[str, Any]) -> Settings:
    """Validate values whose missing keys become `???`, to be filled in by the reader of the file.

    Raises:
        ConfigError: anything else that is wrong.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        for key in missing_keys(cls, error):
            *path, name = key.split(".")
            inner = values
            for part in path:
                inner = inner.setdefault(part, {})
            inner[name] = "???"
        return cls.of(values)
