"""Types that settings share, and what a type annotation may hold."""

import types
import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field


def members(annotation: Any) -> list[Any]:
    """Return the types of a union, through `Annotated`."""
    if typing.get_origin(annotation) is Annotated:
        return members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [member for part in typing.get_args(annotation) for member in members(part)]
    return [] if annotation is Any else [annotation]


def is_model(kind: Any) -> bool:
    """Tell whether a type is a pydantic model."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes that a field may hold."""
    return [kind for kind in members(annotation) if is_model(kind)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Strings = Annotated[list[str], BeforeValidator(_listed)]
"""A list of texts; a single text stands for a list of one."""

Positive = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A seed that NumPy takes as well."""

Precision = Literal["auto", "bf16-mixed", "32-true"]
"""Arithmetic: `auto` is bf16-mixed where the device computes it natively."""
