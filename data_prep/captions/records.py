"""Tasks, samples before annotation, and what was left out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class RawSample:
    """An image with its captions before annotation.

    Attributes:
        name: file name of the image; its suffix says how the bytes are encoded.
        image_id: of the source, None where it has none.
        captions: as written, stripped, none of them empty.
        data: the image file's bytes as they were.
    """

    name: str
    image_id: int | str | None
    captions: tuple[str, ...]
    data: bytes


@dataclass(frozen=True)
class Dropped:
    """An image or a caption that was left out.

    Attributes:
        kind: an image goes with all its captions; a caption goes alone.
        name: of the image, as its source knows it.
        reason: the same words for the same cause, so that it can be counted.
        detail: what differs from case to case, such as the error of a decoder.
    """

    kind: Literal["image", "caption"]
    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Task:
    """A part of the input that becomes whole shards, or nothing.

    Attributes:
        number: index among the tasks of the source; names its shards.
        name: what messages call it: the path of a tar, or a file and a range.
        payload: what `sources.read_task` needs to read it, as plain JSON values.
        stamp: changes whenever the input of this task changes.
    """

    number: int
    name: str
    payload: dict[str, Any]
    stamp: str


class Source(Protocol):
    """Image-caption pairs in one of the layouts that the program reads."""

    def __len__(self) -> int:
        """Return the number of tasks."""

    def tasks(self) -> Iterator[Task]:
        """Yield all tasks in order; each call begins again. Memory does not grow with the input."""

    def dropped(self) -> Iterator[Dropped]:
        """Yield what belongs to no task, such as a caption of an image that the file does not list."""


def key_of(number: int, position: int) -> str:
    """Return the key of a sample in the shards: its task, and its position among the images of the task."""
    return f"{number:06d}{position:06d}"


def position_of(key: str) -> int:
    """Return the position of a sample among the images of its task, by its key."""
    return int(key[6:])
