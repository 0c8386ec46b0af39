"""Captions of shards for a mining that goes through them several times, and lists of stop words."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from simzss.concepts.concept import Caption
from simzss.data.shards import Sample, read_shards
from simzss.errors import DataError

from .mining import Mention, mentions_of


class Captions:
    """The captions of shards, photo by photo, to be gone through several times; a context manager.

    The first pass reads the shards. Their annotations are kept in a temporary file, since the shards are mostly images.

    Args:
        urls: shards.

    Attributes:
        count: captions.
        skipped: samples that could not be read.
    """

    def __init__(self, urls: list[str]) -> None:
        self.count = self.skipped = 0
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        for sample in read_shards(urls):
            if isinstance(sample, Sample):
                self.count += len(sample.captions)
                self._file.write(json.dumps([caption.to_json() for caption in sample.captions]) + "\n")
            else:
                self.skipped += 1

    def __enter__(self) -> "Captions":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[list[Caption]]:
        self._file.seek(0)
        for line in self._file:
            yield [Caption.from_json(record) for record in json.loads(line)]


@dataclass(frozen=True)
class Mentions:
    """The mentions of every caption, photo by photo."""

    captions: Iterable[list[Caption]]
    surface_forms: bool

    def __iter__(self) -> Iterator[list[list[Mention]]]:
        return (mentions_of(photo, self.surface_forms) for photo in self.captions)


def read_stop(path: Path) -> frozenset[str]:
    """Read the words of a stop list: separated by commas and line ends; `#` starts a comment; a word may stand twice.

    Raises:
        DataError: not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"stop={path} cannot be read: {error}") from error
    words = (" ".join(word.lower().split()) for line in lines for word in line.split("#", 1)[0].split(","))
    return frozenset(word for word in words if word)
