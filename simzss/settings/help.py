"""What `simzss VERB --help` prints: every key with its type, default and choices, from the settings classes."""

import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from simzss.settings.compose import CONF_DIR, choices, groups_of, header
from simzss.settings.messages import shown
from simzss.settings.types import members, models_of

_WIDTH = 44  # columns of `key: type = default` before the description


def help_text(verb: str, cls: type[BaseModel]) -> str:
    """Return the help of a verb."""
    lines = header(CONF_DIR / "verbs" / f"{verb}.yaml")
    groups = groups_of(verb)
    if groups:
        lines += ["", "groups, exchanged as NAME=CHOICE:"]
        for group, default in groups.items():
            lines.append(f"  {group}={_default_choice(default)}  ({', '.join(choices(group, verb))})")
    lines += [
        "",
        "keys:",
        *key_lines(cls),
        "",
        "config=FILE  run what `simzss config copy` wrote, or a run's config.yaml",
    ]
    lines.append("conf_dir=DIR  folder of your own presets, searched before ours (./conf when it is there)")
    return "\n".join(lines)


def _default_choice(default: Any) -> str:
    return "…" if default == "???" else shown(default)


def key_lines(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield a line for every key: name, type, default, description."""
    for name, field in cls.model_fields.items():
        key = prefix + name
        nested = models_of(field.annotation)
        if not nested:
            default = field.get_default(call_default_factory=True)
            value = "required" if default is PydanticUndefined else f"= {shown(default) if default != '' else repr('')}"
            yield f"  {f'{key}: {type_name(field.annotation)} {value}':<{_WIDTH}}  {field.description or ''}".rstrip()
        for model in nested:
            tag = _tag(model) if len(nested) > 1 else ""
            yield f"  {key}: {_first_line(model)}" + (f"  ({tag})" if tag else "")
            yield from key_lines(model, f"{key}.")


def _first_line(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _tag(model: type[BaseModel]) -> str:
    """The value by which a member of a union is chosen, such as `kind=stream`."""
    for name in ("kind", "task"):
        if name in model.model_fields:
            return f"{name}={model.model_fields[name].default}"
    return ""


def type_name(annotation: Any) -> str:
    """Return a type as a user would say it."""
    return " | ".join(dict.fromkeys(_name(member) for member in members(annotation))) or "any"


def _name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return "null"
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (list, tuple):
        inner = [argument for argument in arguments if argument is not Ellipsis]
        return f"[{', '.join(type_name(argument) for argument in inner)}{', …' if len(inner) == 1 else ''}]"
    return {int: "integer", float: "number", bool: "true | false", str: "text"}.get(
        kind, getattr(kind, "__name__", "").lower()
    )
