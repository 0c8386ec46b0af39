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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simzss.atomic import PARTIAL, read_json, write_json
from simzss.errors import InputError

_RECORD = {"task", "stamp", "repeats", "shards"}


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

    def dropped(self, number: int) -> Path:
        """What a finished task left out: apart, since a record is read often."""
        return self.tasks / f"{number:06d}.dropped.jsonl"

    def fingerprints(self, number: int) -> Path:
        """Fingerprints of the images of a task."""
        return self.tasks / f"{number:06d}.fingerprints.npz"

    def finished(self, number: int) -> dict[str, Any] | None:
        """The record of a task whose shards are all there with their sizes, or None."""
        record = read_json(self.record(number))
        if not isinstance(record, dict) or not record.keys() >= _RECORD:
            return None
        return record if all(self._is_whole(shard) for shard in record["shards"]) else None

    def numbers(self) -> set[int]:
        """Tasks of which a record or a shard is there."""
        records = {path.name.split(".")[0] for path in self.tasks.glob("[0-9]*")}
        shards = {path.name.split("-")[1] for path in self.path.glob("shard-*.tar")}
        return {int(number) for number in records | shards if number.isdigit()}

    def forget(self, number: int) -> None:
        """Remove all of a task; the record first, since it vouches for the rest, and the last shard next."""
        others = (self.dropped(number), self.fingerprints(number))
        for path in (self.record(number), *reversed(self.shards(number)), *others):
            path.unlink(missing_ok=True)

    def forget_index(self) -> None:
        """Remove the lists of what is there, before that changes."""
        for path in (self.index, self.skipped):
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
    # Absolute: a worker may have another working directory.
    output = OutputFolder(path.absolute())
    try:
        makes = not path.exists()
        lock = _lock(output)
    except OSError as error:
        raise InputError(f"output={path} cannot be made: {error.strerror or error}") from error
    begins = not (output.tasks / "settings.json").exists()
    try:
        _clean(output)
        _check(output, recipe)
        output.scratch.mkdir(exist_ok=True)
        yield output
    except (InputError, OSError) as error:
        if begins:
            _remove_unused(output, makes)
        if isinstance(error, OSError):
            raise InputError(f"output={path} cannot be written: {error.strerror or error}") from error
        raise
    finally:
        _remove_files(output.scratch)
        os.close(lock)  # and with it the lock, as when the process is killed


def _lock(output: OutputFolder) -> int:
    """Take the folder for this process; what another one writes there is not touched before."""
    path = output.path
    if (path.exists() or path.is_symlink()) and not path.is_dir():
        raise InputError(f"output={path} is no folder")
    if path.exists() and not output.tasks.is_dir() and any(PARTIAL not in entry.name for entry in path.iterdir()):
        raise InputError(f"output={path} is not empty, and what it holds is not of this program")
    output.tasks.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output.tasks / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"output={path} is being written by another run") from error
    return descriptor


def _remove_unused(output: OutputFolder, makes: bool) -> None:
    """Remove what a run has begun that ends before it made a shard or anything else that takes long."""
    _clean(output)
    if next(output.path.glob("shard-*.tar"), None) or next(output.tasks.glob("*.npz"), None):
        return
    shutil.rmtree(output.tasks, ignore_errors=True)
    output.forget_index()
    if makes:
        with suppress(OSError):
            output.path.rmdir()


def _clean(output: OutputFolder) -> None:
    """Remove what a run that was killed left behind."""
    for folder in (output.path, output.tasks):
        for leftover in folder.glob(f".*{PARTIAL}*"):
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
        if output.numbers():
            raise InputError(f"{path} is missing or broken, and {output.path} holds finished shards: remove the folder")
        write_json(path, recipe)
        return
    changed = [key for key in recipe.keys() | begun.keys() if recipe.get(key) != begun.get(key)]
    if changed:
        shown = ", ".join(f"{key} was {begun.get(key)} and is {recipe.get(key)}" for key in sorted(changed))
        raise InputError(f"output={output.path} was begun with other settings: {shown}; give another output=")
