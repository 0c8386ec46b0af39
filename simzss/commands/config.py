"""`simzss config show|validate|copy VERB`: what a verb would run with."""

from pathlib import Path

from simzss.commands.verbs import VERBS, settings_of, training_verb
from simzss.errors import ConfigError, nearest
from simzss.settings.base import Settings
from simzss.settings.compose import compose
from simzss.settings.files import save, to_yaml, with_placeholders

ACTIONS = ("show", "validate", "copy")
USAGE = f"usage: simzss config {'|'.join(ACTIONS)} VERB [FILE] [key=value …]"


def run(arguments: list[str], config: str | None = None) -> str:
    """Do what the arguments after `config` ask; return what is to be printed.

    Raises:
        ConfigError: another action or verb, settings that do not hold, a file that exists.
    """
    if len(arguments) < 2:
        raise ConfigError(USAGE)
    action, verb, *rest = arguments
    if action not in ACTIONS:
        raise ConfigError(f"unknown action {action!r}; {nearest(action, ACTIONS)}; {USAGE}")
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}; {nearest(verb, VERBS)}; {USAGE}")
    verb = training_verb(rest) if verb == "train" else verb
    if action == "validate":
        settings_of(verb, rest, config)
        return "valid"
    if action == "show":
        return to_yaml(_template(verb, rest, config)).rstrip()
    if not rest or "=" in rest[0]:
        raise ConfigError("usage: simzss config copy VERB FILE [key=value …]")
    target = Path(rest[0])
    if target.exists():
        raise ConfigError(f"{target} exists already")
    save(_template(verb, rest[1:], config), target)
    return str(target)


def _template(verb: str, overrides: list[str], config: str | None) -> Settings:
    """Settings in which what is still to be given is `???`."""
    return with_placeholders(VERBS[verb].cls, compose(verb, overrides, config))
