"""The base class of all settings, and how text from a command line becomes a typed value."""

import typing
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from simzss.settings.messages import config_error
from simzss.settings.read_yaml import read_yaml
from simzss.settings.types import is_model, members


class Given(str):
    """A value as it was typed, whose meaning the type of its field decides."""


if typing.TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # it has no public name


class _RaisesConfigError(ModelMetaclass):
    """Turns a failed construction in Python into a `ConfigError`.

    Nested models are built without this call, so that only the outermost error is translated.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise config_error(typing.cast(type[BaseModel], self), error) from None


class Settings(BaseModel, metaclass=_RaisesConfigError):
    """Base of all settings: immutable, strict about unknown keys, documented by the docstrings of their fields.

    Raises:
        ConfigError: a value that does not fit; one line that names the key.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, ser_json_inf_nan="strings"
    )

    @classmethod
    def of(cls, values: Any) -> Self:
        """Validate nested plain values, such as those that `compose` returns.

        Raises:
            ConfigError: see the class.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise config_error(cls, error) from None

    def replace(self, **changes: Any) -> Self:
        """Return a checked copy with other values of some fields."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def plain(self) -> dict[str, Any]:
        """Return the values as dictionaries, lists and scalars, for YAML and JSON."""
        return self.model_dump(mode="json")

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            key: read_text(str(value), fields[key]) if isinstance(value, Given) and key in fields else value
            for key, value in values.items()
        }


def read_text(text: str, field: FieldInfo) -> Any:
    """Interpret typed text for a field; what it cannot be stays text, which the field then refuses.

    `null` is None where None is allowed. Text fields take it as written, less one pair of quotes. Lists are `[a,b]` or
    `a,b`, mappings `{a: b}`. Numbers and booleans are read by pydantic.
    """
    kinds = members(field.annotation)
    if text == "null" and type(None) in kinds:
        return None
    takes_text = any(kind is str or typing.get_origin(kind) is Literal for kind in kinds) or not kinds
    sequences = [kind for kind in kinds if (typing.get_origin(kind) or kind) in (list, tuple)]
    if sequences and (not takes_text or text.startswith("[")):
        return _parsed(text if text.startswith("[") else f"[{text}]", list, text)
    if any((typing.get_origin(kind) or kind) is dict or is_model(kind) for kind in kinds):
        return _parsed(text, dict, text)
    unquoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    return unquoted


def _parsed(text: str, wanted: type, original: str) -> Any:
    """YAML with every scalar left as text, which pydantic then reads by the type of its place."""
    try:
        value = read_yaml(text, plain_text=True)
    except yaml.YAMLError:
        return original
    return _given(value) if isinstance(value, wanted) else original


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _given(entry) if isinstance(entry, dict | list) else Given(entry) for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_given(entry) if isinstance(entry, dict | list) else str(entry) for entry in value]
    return value
