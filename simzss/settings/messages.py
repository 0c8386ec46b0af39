"""What pydantic finds wrong, as one line in the words of the command line."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simzss.errors import ConfigError, nearest
from simzss.settings.types import models_of

_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list [a,b]",
    "tuple": "a list [a,b]",
    "dict": "a mapping {a: b}",
    "model": "a mapping {a: b}",
    "string": "text",
    "path": "a path",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}


def config_error(cls: type[BaseModel], error: ValidationError) -> ConfigError:
    """Translate a failed validation: all missing keys together, else the first other mistake."""
    found = [
        (key_of(cls, entry["loc"], entry["type"] == "extra_forbidden"), _of_list(entry)) for entry in error.errors()
    ]
    wrong = [key for key, entry in found if entry["type"] != "missing"]
    if not wrong:
        return ConfigError(f"value missing: give {' '.join(f'{key}=…' for key in missing_keys(cls, error))}")
    # The members of a union each report; they belong together.
    together = [entry for key, entry in found if key == wrong[0] and entry["type"] != "missing"]
    return ConfigError(_message(cls, wrong[0], together))


def missing_keys(cls: type[BaseModel], error: ValidationError) -> list[str]:
    """Return the dotted keys that are required and were not given."""
    sections = [key_of(cls, entry["loc"]) for entry in error.errors() if _of_list(entry)["type"] == "missing"]
    return list(dict.fromkeys(leaf for section in sections for leaf in _required(cls, section)))


def _message(cls: type[BaseModel], key: str, entries: list[ErrorDetails]) -> str:
    entry = entries[0]
    kind, context = entry["type"], entry.get("ctx", {})
    given = f"{key}={shown(entry['input'])}" if key else shown(entry["input"])
    if kind == "extra_forbidden":
        return f"unknown key {key!r}; {nearest(key, known_keys(cls))}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
        discriminator = str(context.get("discriminator", "kind")).strip("'").removesuffix("()")
        value = entry["input"].get(discriminator) if isinstance(entry["input"], dict) else entry["input"]
        return f"{key}.{discriminator}={shown(value)} is unknown; {nearest(str(value), tags)}"
    if kind == "value_error":
        return f"{given} {context['error']}" if key else str(context["error"])
    expected = list(dict.fromkeys(_expected(one) for one in entries if _expected(one)))
    if kind == "literal_error" and len(entries) == 1:
        return f"{given} is unknown; {nearest(str(entry['input']), _literals(entry))}"
    if bounds := [_bound(one) for one in entries if one["type"] in _BOUNDS]:
        return f"{given} must be {bounds[0]}" + (f", or {expected[-1]}" if len(expected) > 0 else "")
    if kind == "finite_number":
        return f"{given} must be finite"
    if kind in ("too_short", "too_long"):
        actual, wanted = context.get("actual_length"), context.get("min_length", context.get("max_length"))
        return f"{given} has {actual} entries in place of {'at least' if kind == 'too_short' else 'at most'} {wanted}"
    return f"{given}: expected {' or '.join(expected)}" if expected else f"{given}: {entry['msg']}"


def _of_list(entry: ErrorDetails) -> ErrorDetails:
    """A missing entry of a list is a mistake in the list."""
    if entry["type"] == "missing" and isinstance(entry["loc"][-1], int):
        return {
            **entry,
            "type": "too_short",
            "ctx": {"actual_length": entry["loc"][-1], "min_length": entry["loc"][-1] + 1},
        }
    return entry


def _required(cls: type[BaseModel], key: str) -> list[str]:
    """The key, or the required keys of the section that it names."""
    models: list[type[BaseModel]] = [cls]
    for part in key.split("."):
        holder = next((model for model in models if part in model.model_fields), None)
        models = models_of(holder.model_fields[part].annotation) if holder is not None else []
    if len(models) != 1:
        return [key]
    names = [name for name, field in models[0].model_fields.items() if field.is_required()]
    return [leaf for name in names for leaf in _required(cls, f"{key}.{name}")]


def _bound(entry: ErrorDetails) -> str:
    word, name = _BOUNDS[entry["type"]]
    return f"{word} {entry['ctx'][name]:g}"


def _expected(entry: ErrorDetails) -> str:
    if entry["type"] == "literal_error":
        return " or ".join(_literals(entry))
    return _EXPECTED.get(entry["type"].split("_")[0], "") if entry["type"] not in _BOUNDS else ""


def _literals(entry: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", entry["ctx"]["expected"]) or entry["ctx"]["expected"].split(" or ")


def shown(value: Any) -> str:
    """Return a value as it would be typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    return str(value)


def key_of(cls: type[BaseModel], location: tuple[int | str, ...], unknown: bool = False) -> str:
    """Return the dotted key of a pydantic location, which also holds tags of unions and places in lists."""
    path: list[str] = []
    models: list[type[BaseModel]] = [cls]
    for number, part in enumerate(location):
        holder = next((model for model in models if part in model.model_fields), None)
        if holder is not None:
            path.append(str(part))
            models = models_of(holder.model_fields[str(part)].annotation)
        elif unknown and number == len(location) - 1:
            path.append(str(part))
    return ".".join(path)


def known_keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every dotted key of a settings class, those of all members of a union included."""
    return list(dict.fromkeys(_known(cls, prefix)))


def _known(cls: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        models = models_of(field.annotation)
        if not models:
            yield prefix + name
        for model in models:
            yield from _known(model, f"{prefix}{name}.")
