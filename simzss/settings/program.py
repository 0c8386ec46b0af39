"""The settings of a program of `simzss prep`: `key=value` arguments become an object of its settings class."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from simzss.errors import ConfigError
from simzss.settings.base import Given, Settings
from simzss.settings.compose import compose, split, user_presets
from simzss.settings.help import help_text, key_lines

ProgramSettings = TypeVar("ProgramSettings", bound=Settings)

HELP = {"-h", "--help"}


def parse(
    cls: type[ProgramSettings], arguments: Sequence[str] | None = None, verb: str | None = None
) -> ProgramSettings:
    """Return the settings that `key=value` arguments give; `--help` prints all keys and exits.

    Args:
        cls: settings class of the program.
        arguments: default those of the command line.
        verb: file of `conf/verbs` that composes groups for the program, which then takes `config=FILE` and
            `conf_dir=DIR` as the verbs do.

    Raises:
        ConfigError: an unknown key (nearest names given), a bad value, or missing ones.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if HELP & set(arguments):
        print("\n".join(_help(cls)) if verb is None else help_text(verb, cls))
        raise SystemExit(0)
    if verb is None:
        return cls.of({key: Given(value) for key, value in map(split, arguments)})
    arguments, config, conf_dir = split_sources(arguments)
    with user_presets(conf_dir):
        return cls.of(compose(verb, arguments, config))


def split_sources(arguments: Sequence[str]) -> tuple[list[str], str | None, str | None]:
    """Return the arguments without `config=FILE` (`--config FILE`) and `conf_dir=DIR`, and the values of these two.

    Raises:
        ConfigError: one of them without a value.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        key, equals, value = argument.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if key not in ("config", "conf_dir") or not (equals or argument.startswith("--")):
            rest.append(argument)
            continue
        value = value if equals else next(waiting, "")
        if not value:
            raise ConfigError(f"{argument}: a value is needed")
        found[key] = value
    return rest, found.get("config"), found.get("conf_dir")


def _help(cls: type[Settings]) -> Iterator[str]:
    yield inspect.cleandoc(cls.__doc__ or "")
    yield "\nkeys, given as key=value:"
    yield from key_lines(cls)
