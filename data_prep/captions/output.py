"""The output folder: whole files or none, what is done, and the lock that lets one run at a time write it.

shard-TTTTTT-PPP.tar   part PPP of task TTTTTT
index.json             all shards, once every task was tried
skipped.jsonl          every image and caption that was left out, and why
.tasks/                what is done: settings.json, a record for each task, fingerprints of images
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from simzss.errors import InputError

_PARTIAL = ".partial-"


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file that appears with its full content or not at all, whatever happens to the machine."""
    partial = partial_path(path)
    try:
        with partial.open("wb") as stream:
            write(stream)
            sync(stream)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def partial_path(path: Path) -> Path:
    """The name under which this process writes `path` until it is whole."""
    return path.with_name(f".{path.name}{_PARTIAL}{socket.gethostname()}-{os.getpid()}")


def sync(stream: BinaryIO) -> None:
    """Put what was written on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; half a surrogate pair, as names may hold, stays the JSON escape that it was."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda stream: _write(stream, text.encode(errors="backslashreplace")))


def read_json(path: Path) -> Any:
    """JSON content, or None where there is no such file or it holds something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class OutputFolder:
    """Names in the output folder, and what its records say; usable from every process."""

    path: Path

    @property
    def tasks(self) -> Path:
        """Folder of the records."""
        return self.path / ".tasks"

    @property
    def scratch(self) -> Path:
        """Folder for temporary files of the driver."""
        return self.tasks / "scratch"

    @property
    def index(self) -> Path:
        """The list of shards."""
        return self.path / "index.json"

    @property
    def skipped(self) -> Path:
        """The list of what was left out."""
        return self.path / "skipped.jsonl"

    def shard(self, number: int, part: int) -> Path:
        """A shard of a task."""
        return self.path / f"shard-{number:06d}-{part:03d}.tar"

    def shards(self, number: int) -> list[Path]:
        """The shards of a task that are there; its parts are numbered without a gap."""
        found: list[Path] = []
        while (path := self.shard(number, len(found))).exists():
            found.append(path)
        return found

    def record(self, number: int) -> Path:
        """The record of a finished task."""
        return self.tasks / f"{number:06d}.json"

    def fingerprints(self, number: int) -> Path:
        """Fingerprints of the images of a task."""
        return self.tasks / f"{number:06d}.fingerprints.npz"

    def finished(self, number: int) -> dict[str, Any] | None:
        """The record of a task whose shards are all there with their sizes, or None."""
        record = read_json(self.record(number))
        if record is None or not all(self._is_whole(shard) for shard in record["shards"]):
            return None
        return record

    def numbers(self) -> Iterator[int]:
        """Tasks with a record."""
        return (int(path.stem) for path in self.tasks.glob("[0-9]*.json"))

    def forget(self, number: int) -> None:
        """Remove a task's record and shards; the record first, since it vouches for them, and the last shard next."""
        for path in (self.record(number), *reversed(self.shards(number))):
            path.unlink(missing_ok=True)

    def _is_whole(self, shard: dict[str, Any]) -> bool:
        try:
            return (self.path / shard["name"]).stat().st_size == shard["bytes"]
        except OSError:
            return False


@contextmanager
def opened(path: Path, recipe: dict[str, Any]) -> Iterator[OutputFolder]:
    """Make or enter an output folder, alone.

    Args:
        path: the folder; other than new or empty it must be one that the same recipe began.
        recipe: all that the bytes of the shards depend on besides the input, as plain JSON values.

    Raises:
        InputError: cannot be made or written, holds something else, was begun with another recipe, or another run
            writes it.
    """
    output = OutputFolder(path)
    if (path.exists() or path.is_symlink()) and not path.is_dir():
        raise InputError(f"output={path} is no folder")
    if path.exists() and any(path.iterdir()) and not output.tasks.is_dir():
        raise InputError(f"output={path} is not empty, and what it holds is not of this program")
    begins, makes = not output.tasks.exists(), not path.exists()
    try:
        output.scratch.mkdir(parents=True, exist_ok=True)
        lock = os.open(output.tasks / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"output={path} cannot be made: {error.strerror or error}") from error
    try:
        _lock(lock, path)
        _clean(output)
        _check(output, recipe)
        yield output
    except BaseException as error:
        if begins and not any(path.glob("shard-*.tar")):  # nothing that a later run could use
            shutil.rmtree(output.tasks)
            for file in (output.index, output.skipped):
                file.unlink(missing_ok=True)
            if makes:
                path.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"output={path} cannot be written: {error.strerror or error}") from error
        raise
    finally:
        _remove_files(output.scratch)
        os.close(lock)  # and with it the lock, as when the process is killed


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"output={path} is being written by another run") from error


def _clean(output: OutputFolder) -> None:
    """Remove what a run that was killed left behind."""
    for folder in (output.path, output.tasks):
        for leftover in folder.glob(f".*{_PARTIAL}*"):
            leftover.unlink(missing_ok=True)
    _remove_files(output.scratch)


def _remove_files(folder: Path) -> None:
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)


def _check(output: OutputFolder, recipe: dict[str, Any]) -> None:
    """Refuse a folder that was begun with other settings: its shards would not go together."""
    path = output.tasks / "settings.json"
    recipe = json.loads(json.dumps(recipe))  # as it reads when it comes back from the file
    begun = read_json(path)
    if begun is None:
        if next(output.numbers(), None) is not None:
            raise InputError(f"{path} is missing or broken, and {output.path} holds finished shards: remove the folder")
        write_json(path, recipe)
        return
    changed = [key for key in recipe.keys() | begun.keys() if recipe.get(key) != begun.get(key)]
    if changed:
        shown = ", ".join(f"{key} was {begun.get(key)} and is {recipe.get(key)}" for key in sorted(changed))
        raise InputError(f"output={output.path} was begun with other settings: {shown}; give another output=")


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
