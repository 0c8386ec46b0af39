"""The folder of a cache: names in it, what is finished, and the lock that lets one run at a time write it.

features-SSSSSS-PPP.safetensors   part PPP of shard SSSSSS
index.json                        all files, once every shard was read
.tasks/                           facts.json, a record SSSSSS-PPP.json for each finished part, a stamp SSSSSS.json for
                                  each finished shard
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simzss.atomic import PARTIAL, read_json, write_json
from simzss.errors import InputError
from simzss.features.files import FileRecord
from simzss.features.metadata import CacheFacts, differences


@dataclass(frozen=True)
class Part:
    """A finished part of a shard: a run of its records, and the file of those that are images.

    Attributes:
        number: of the part.
        records: of the shard that a part takes at most.
        shard_sha256: of the tar.
        file: None where no record was a readable image.
        skipped: (key, reason) of the others.
    """

    number: int
    records: int
    shard_sha256: str | None
    file: FileRecord | None
    skipped: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {
            "part": self.number,
            "records": self.records,
            "shard_sha256": self.shard_sha256,
            "file": self.file.to_json() if self.file else None,
            "skipped": [list(entry) for entry in self.skipped],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Part":
        """Inverse of `to_json`; what is missing raises KeyError, other shapes TypeError or ValueError."""
        return cls(
            int(record["part"]),
            int(record["records"]),
            record["shard_sha256"],
            FileRecord.from_json(record["file"]) if record["file"] else None,
            tuple((str(key), str(reason)) for key, reason in record["skipped"]),
        )


@dataclass(frozen=True)
class Stamp:
    """A finished shard: the tar that it was, and all its parts in order."""

    number: int
    shard: str
    bytes: int
    sha256: str | None
    parts: tuple[Part, ...]

    @property
    def files(self) -> list[FileRecord]:
        """Its files."""
        return [part.file for part in self.parts if part.file is not None]

    @property
    def images(self) -> int:
        """Images of which there are features."""
        return sum(file.images for file in self.files)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(key, reason) of what is no readable image."""
        return [entry for part in self.parts for entry in part.skipped]


@dataclass(frozen=True)
class CacheFolder:
    """Names in the folder of a cache, and what its records say; usable from every process."""

    path: Path

    @property
    def tasks(self) -> Path:
        """Folder of the records."""
        return self.path / ".tasks"

    @property
    def facts(self) -> Path:
        """What the features were begun with."""
        return self.tasks / "facts.json"

    @property
    def index(self) -> Path:
        """The list of files."""
        return self.path / "index.json"

    @property
    def stop(self) -> Path:
        """Left by a process that fails, for the others to end too."""
        return self.tasks / "stop"

    def features(self, number: int, part: int) -> Path:
        """The file of a part of a shard."""
        return self.path / f"features-{number:06d}-{part:03d}.safetensors"

    def all_features(self) -> list[Path]:
        """The files that are there."""
        return sorted(self.path.glob("features-*.safetensors"))

    def part(self, number: int, part: int) -> Path:
        """The record of a finished part."""
        return self.tasks / f"{number:06d}-{part:03d}.json"

    def read_part(self, number: int, part: int) -> Part | None:
        """The record of a finished part; None where there is none, or a broken one, which vouches for nothing."""
        try:
            return Part.from_json(read_json(self.part(number, part)))
        except (KeyError, TypeError, ValueError):
            return None

    def listing(self) -> dict[int, set[Path]]:
        """Everything that is there of each shard: files, records, stamp."""
        found: dict[int, set[Path]] = {}
        for place, start in ((self.path, "features-"), (self.tasks, "")):
            for path in place.glob(f"{start}[0-9]*"):
                number = path.stem.removeprefix(start).split("-")[0]
                if number.isdigit():
                    found.setdefault(int(number), set()).add(path)
        return found

    def stamp(self, number: int) -> Path:
        """The record of a finished shard."""
        return self.tasks / f"{number:06d}.json"

    def finished(self, number: int) -> Stamp | None:
        """The stamp of a finished shard, or None."""
        try:
            record = read_json(self.stamp(number))
            parts = [self.read_part(number, part) for part in range(record["parts"])]
            known = tuple(part for part in parts if part is not None)
            if len(known) < len(parts):
                return None
            return Stamp(number, str(record["shard"]), int(record["bytes"]), str(record["sha256"]), known)
        except (KeyError, TypeError, ValueError):
            return None

    def finish(self, stamp: Stamp) -> None:
        """Leave the stamp of a shard, whose parts have their records."""
        record = {"shard": stamp.shard, "bytes": stamp.bytes, "sha256": stamp.sha256, "parts": len(stamp.parts)}
        write_json(self.stamp(stamp.number), record)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's error while a file of the cache is written into one line.

    Raises:
        InputError: names the file and the reason.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; the same command goes on from what is finished"
        ) from error


@contextmanager
def opened(path: Path, facts: CacheFacts) -> Iterator[CacheFolder]:
    """Make or enter the folder of a cache, alone.

    Raises:
        InputError: cannot be made or written, holds something else or features of another run, or another run writes
            it; then nothing in it was touched.
    """
    folder = CacheFolder(path.absolute())
    makes = not path.exists()
    try:
        lock = _lock(folder, path)
    except OSError as error:
        raise InputError(f"output={path} cannot be made: {error.strerror or error}") from error
    begins = not isinstance(read_json(folder.facts), dict)
    try:
        _check(folder, path, facts)
        _clean(folder)
        if begins:
            with writing(folder.facts):
                write_json(folder.facts, facts.to_json())
        yield folder
    except BaseException:
        if begins:
            _remove_unused(folder, makes)
        raise
    finally:
        folder.stop.unlink(missing_ok=True)
        os.close(lock)  # and with it the lock, as when the process is killed


def _lock(folder: CacheFolder, path: Path) -> int:
    """Take the folder for this process."""
    if (path.exists() or path.is_symlink()) and not path.is_dir():
        raise InputError(f"output={path} is no folder")
    if path.exists() and not folder.tasks.is_dir() and any(PARTIAL not in entry.name for entry in path.iterdir()):
        raise InputError(f"output={path} is not empty, and what it holds is not of this program")
    folder.tasks.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.tasks / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Not flock: the decoding processes would inherit it, and hold it for seconds after a kill of this one.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(descriptor)
        raise InputError(f"output={path} is being written by another run") from error
    return descriptor


def _check(folder: CacheFolder, path: Path, facts: CacheFacts) -> None:
    """Refuse a folder whose features are of another kind: they would not go together."""
    begun = read_json(folder.facts)
    if not isinstance(begun, dict):
        if folder.listing():
            raise InputError(f"{folder.facts} is missing or broken, and {path} holds features: remove the folder")
        return
    if changed := differences(begun, facts.to_json()):
        raise InputError(f"output={path} holds features of another kind: {', '.join(changed)}; give another output=")


def _clean(folder: CacheFolder) -> None:
    """Remove what a run that was killed left half done."""
    folder.stop.unlink(missing_ok=True)
    for place in (folder.path, folder.tasks):
        for leftover in place.glob(f".*{PARTIAL}*"):
            leftover.unlink(missing_ok=True)


def _remove_unused(folder: CacheFolder, makes: bool) -> None:
    """Remove what a run has begun that ends before it has a single file of features."""
    if folder.all_features():
        return
    _clean(folder)
    shutil.rmtree(folder.tasks, ignore_errors=True)
    if makes:
        with suppress(OSError):
            folder.path.rmdir()
