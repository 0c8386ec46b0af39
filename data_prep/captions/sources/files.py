"""Read image files of a folder with captions from elsewhere, as COCO and tables have them."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from simzss.data.images import MAX_BYTES
from simzss.data.names import LEADS_OUT, name_fault
from simzss.data.shards import IMAGE_SUFFIXES
from simzss.errors import DataError

from ..records import Dropped, RawSample, Task
from .grouping import Group, Grouping
from .texts import (
    LISTED_TWICE,
    MISSING,
    OTHER_SUFFIX,
    OUTSIDE,
    UNLISTED,
    UNREADABLE,
    sort_captions,
)


@dataclass(frozen=True)
class FileSource:
    """Image files with the captions of a `Grouping`.

    Attributes:
        label: path of the captions, for messages.
        folder: where relative names start.
        size: images of a task.
        listed: the captions name images of a list with ids, which can be wrong; otherwise every caption comes with its
            path.
        inside: all files are in `folder`; otherwise they may be anywhere.
    """

    label: str
    folder: Path
    grouping: Grouping
    size: int
    listed: bool
    inside: bool

    def __len__(self) -> int:
        return -(-len(self.grouping) // self.size)

    def tasks(self) -> Iterator[Task]:
        """Yield `size` images at a time in their order; records travel with the task, image files do not."""
        groups = self.grouping.groups()
        first = 1
        number = 0
        while chunk := list(islice(groups, self.size)):
            records = [[group.name, group.image_id, group.captions] for group in chunk]
            payload = {"folder": str(self.folder.absolute()), "inside": self.inside, "records": records}
            name = f"{self.label}, images {first} to {first + len(chunk) - 1}"
            yield Task(number, name, payload, self._stamp(chunk))
            first += len(chunk)
            number += 1

    def dropped(self) -> Iterator[Dropped]:
        """Yield rows that could not be joined, images listed again, and captions of images that are not listed."""
        yield from self.grouping.dropped()
        if self.listed:
            for name in self.grouping.repeated():
                yield Dropped("image", name, LISTED_TWICE)
            for key, text in self.grouping.unlisted():
                yield Dropped("caption", f"image id {key}", UNLISTED, shorten(text, 100, placeholder=" …"))

    def require_any(self, what: str) -> None:
        """Refuse an input of which nothing is there.

        Args:
            what: of the input, in the plural, for the message.

        Raises:
            DataError: not one image file is there with a caption.
        """
        for group in self.grouping.groups():
            captions, _ = sort_captions(group.name, group.captions)
            if captions and self._stat(group.name) is not None:
                return
        count = len(self.grouping)
        raise DataError(f"none of the {count} {what} of {self.label} is in {self.folder} with a caption")

    def _stamp(self, chunk: list[Group]) -> str:
        digest = hashlib.sha256()
        for group in chunk:
            digest.update(json.dumps([group.name, group.image_id, group.captions, self._stat(group.name)]).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def _stat(self, name: str) -> list[int] | None:
        """Return size and time of change of an image file; None without one, or where it is not looked up."""
        if _misplaced(name, self.folder, self.inside):
            return None
        try:
            # Millions of times; with Path it takes three times as long.
            found = os.stat(os.path.join(self.folder, name))  # noqa: PTH116, PTH118
        except (OSError, ValueError):
            return None
        return [found.st_size, found.st_mtime_ns]


def read_files(payload: dict[str, Any]) -> Iterator[RawSample | Dropped]:
    """Yield the samples of a task, each image read when its turn comes."""
    folder = Path(payload["folder"])
    for name, image_id, texts in payload["records"]:
        reason = _misplaced(name, folder, payload["inside"])
        if reason:
            yield Dropped("image", name, reason)
            continue
        try:
            path = folder / name
            if path.stat().st_size > MAX_BYTES:
                yield Dropped("image", name, UNREADABLE, f"more than {MAX_BYTES / 1e6:.0f} MB")
                continue
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            # ValueError: a name that no file can have, with a zero byte or half a surrogate pair.
            yield Dropped("image", name, MISSING)
            continue
        except OSError as error:
            yield Dropped("image", name, UNREADABLE, error.strerror or str(error))
            continue
        captions, dropped = sort_captions(name, texts)
        yield from dropped
        if captions:
            yield RawSample(name, image_id, captions, data)


def require_images(folder: Path) -> None:
    """Refuse a folder without images, before a long file is read for it.

    Raises:
        DataError: no folder, or no image in it or below.
    """
    if not folder.is_dir():
        raise DataError(f"images={folder} is no folder")
    if not any(path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES for path in folder.rglob("*")):
        raise DataError(f"images={folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")


def _misplaced(name: str, folder: Path, inside: bool) -> str:
    """Return why a name is not looked up; empty if it is."""
    stem, _, suffix = name.rpartition(".")
    if suffix.lower() not in IMAGE_SUFFIXES or not stem or stem.endswith("/"):
        return OTHER_SUFFIX
    # A file of strangers must not say which files of this machine go into the shards.
    fault = name_fault(name.removeprefix(f"{folder.absolute()}/")) if inside else None
    return OUTSIDE if fault == LEADS_OUT else "" if fault is None else f"path {fault}"
