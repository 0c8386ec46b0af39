"""Typed text, types, and the one line that each mistake becomes."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from simzss.errors import ConfigError, InputError, SimZSSError
from simzss.settings.base import Given, Settings
from simzss.settings.help import type_name
from simzss.settings.types import Strings


class One(Settings):
    """The first of two kinds."""

    kind: Literal["one"] = "one"
    size: Annotated[int, Field(ge=1)] = 3


class Two(Settings):
    """The other."""

    kind: Literal["two"] = "two"
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5


class Inner(Settings):
    """A section with a key that must be given."""

    root: str
    limit: int | None = 4


class Root(Settings):
    """One of everything."""

    name: str = "a"
    count: int = 1
    rate: float = 1.0
    flag: bool = False
    words: Strings = []
    pair: tuple[float, float] = (0.1, 0.2)
    pattern: str | list[str] = "*"
    devices: int | Literal["auto"] = "auto"
    maybe: float | None = None
    table: dict[str, int] = {}
    folder: Path = Path("out")
    part: Annotated[One | Two, Field(discriminator="kind")] = One()
    inner: Inner = Inner(root="r")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "007", "007"),
        ("name", "null", "null"),
        ("name", "'quoted'", "quoted"),
        ("name", "dog's bowl", "dog's bowl"),
        ("name", "${seed}", "${seed}"),
        ("count", "12", 12),
        ("rate", "1e-3", 1e-3),
        ("rate", "5", 5.0),
        ("flag", "true", True),
        ("words", "[a, b]", ["a", "b"]),
        ("words", "a,b", ["a", "b"]),
        ("words", "one", ["one"]),
        ("words", "[]", []),
        ("pair", "[0.5,1]", (0.5, 1.0)),
        ("pattern", "s/{a,b}/*.tar", "s/{a,b}/*.tar"),
        ("pattern", "[x,y]", ["x", "y"]),
        ("devices", "2", 2),
        ("devices", "auto", "auto"),
        ("maybe", "null", None),
        ("maybe", "2", 2.0),
        ("table", "{a: 1}", {"a": 1}),
        ("folder", "2024_01_01", Path("2024_01_01")),
        ("folder", "a=b/ü [1]", Path("a=b/ü [1]")),
        ("part", "{kind: two, share: 0.25}", Two(share=0.25)),
    ],
)
def test_text_is_read_by_the_type_of_its_key(key, text, value):
    assert getattr(Root.of({key: Given(text)}), key) == value


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"conut": 1}, ["'conut'", "count"]),
        ({"inner": {"root": "x", "limt": 1}}, ["'inner.limt'", "inner.limit"]),
        ({"count": Given("many")}, ["count=many", "integer"]),
        ({"count": Given("1.5")}, ["count=1.5", "integer"]),
        ({"rate": float("nan")}, ["rate=nan", "finite"]),
        ({"flag": Given("perhaps")}, ["flag=perhaps", "true or false"]),
        ({"pair": Given("[1]")}, ["pair", "1 entries"]),
        ({"pair": Given("[1,2,3]")}, ["pair"]),
        ({"pair": Given("[1,")}, ["pair=[1,", "list"]),
        ({"table": Given("{a")}, ["table={a", "mapping"]),
        ({"devices": Given("some")}, ["devices=some", "integer or auto"]),
        ({"part": {"kind": "three"}}, ["part.kind=three", "one"]),
        ({"part": {"kind": "one", "size": 0}}, ["part.size=0", "at least 1"]),
        ({"part": {"kind": "two", "share": 1}}, ["part.share=1", "below 1"]),
        ({"part": {"kind": "two", "size": 1}}, ["'part.size'"]),
        ({"inner": {}}, ["inner.root=…"]),
        ({"inner": None}, ["inner=null"]),
        ({"count": None}, ["count=null", "integer"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(values, parts):
    with pytest.raises(ConfigError) as caught:
        Root.of(values)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert all(part in message for part in parts), message


def test_all_missing_keys_are_named_together():
    class Outer(Settings):
        """Sections that must be given."""

        model: str
        inner: Inner

    for values in ({}, {"inner": {"limit": 1}}):
        with pytest.raises(ConfigError, match=r"give model=… inner\.root=…"):
            Outer.of(values)


def test_construction_in_python_raises_the_same_errors():
    with pytest.raises(ConfigError, match="size=0 must be at least 1"):
        One(size=0)
    with pytest.raises(ConfigError, match="share=2"):
        Two().replace(share=2)
    assert issubclass(ConfigError, InputError) and issubclass(InputError, SimZSSError)


def test_settings_are_immutable_and_go_through_plain_values():
    settings = Root(words=["a"], part=Two(), folder=Path("x/y"))
    with pytest.raises(ValueError, match="frozen"):
        settings.count = 2  # type: ignore[misc]
    assert Root.of(settings.plain()) == settings


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (int | None, "integer | null"),
        (Literal["a", "b"], "a | b"),
        (tuple[float, float], "[number, number]"),
        (list[str], "[text, …]"),
        (Annotated[int, Field(ge=1)] | Literal["all"], "integer | all"),
        (Path, "path"),
    ],
)
def test_types_are_named_as_a_user_says_them(annotation, name):
    assert type_name(annotation) == name
