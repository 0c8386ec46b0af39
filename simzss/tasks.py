"""Folders of resumable work: a lock, a manifest of settings, and done markers by which an interrupted run goes on.

NAME-TTTTTT-CCC.SUFFIX   result: chunk CCC of task TTTTTT
index.json               list of all results, written last
.tasks/                  manifest, lock, and TTTTTT*: the done marker TTTTTT.json and whatever else is kept of a task
.tasks/scratch/          temporary files of the run that holds the lock
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from filelock import FileLock, Timeout

from simzss.atomic import PARTIAL, read_json, write_json
from simzss.errors import DataError


@dataclass(frozen=True)
class TaskFolder:
    """Names in a folder of resumable work, usable from every process; `open` begins or resumes the work.

    Attributes:
        path: the folder.
        result_name: of result files, before the number of the task.
        result_suffix: of result files.
        manifest_name: of the file of settings.
        lists: files that list what is done.
    """

    result_name: ClassVar[str]
    result_suffix: ClassVar[str]
    manifest_name: ClassVar[str]
    lists: ClassVar[tuple[str, ...]] = ("index.json",)

    path: Path

    @property
    def index(self) -> Path:
        """Return the path of the list of results."""
        return self.path / "index.json"

    @property
    def tasks(self) -> Path:
        """Return the folder of manifest, lock and done markers."""
        return self.path / ".tasks"

    @property
    def scratch(self) -> Path:
        """Return the folder of temporary files, which is there while the work is open."""
        return self.tasks / "scratch"

    @property
    def manifest(self) -> Path:
        """Return the path of the settings with which the work was begun."""
        return self.tasks / self.manifest_name

    def result(self, number: int, chunk: int) -> Path:
        """Return the path of a chunk of a task's results."""
        return self.path / f"{self.result_name}-{number:06d}-{chunk:03d}{self.result_suffix}"

    def record(self, number: int) -> Path:
        """Return the path of a task's done marker."""
        return self.tasks / f"{number:06d}.json"

    def listing(self) -> dict[int, set[Path]]:
        """Return every file that is there of each task: results, done marker, others."""
        found: dict[int, set[Path]] = {}
        for folder, start in ((self.path, f"{self.result_name}-"), (self.tasks, "")):
            for path in folder.glob(f"{start}[0-9]*"):
                if number := re.match(r"\d+(?=[-.])", path.name.removeprefix(start)):
                    found.setdefault(int(number.group()), set()).add(path)
        return found

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files of tasks: done markers first, results last and from the last chunk on."""
        by_name = sorted(paths, reverse=True)
        for path in sorted(by_name, key=lambda path: (path.parent != self.tasks, not path.stem.isdigit())):
            path.unlink(missing_ok=True)

    def forget_index(self) -> None:
        """Remove the lists of what is done, before that changes."""
        for name in self.lists:
            (self.path / name).unlink(missing_ok=True)

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Iterator[Self]:
        """Begin or resume work, as the only process that does.

        When it was begun now and ends by an error before there is a result, nothing is left.

        Args:
            path: new, empty, or a folder whose work was begun with equal settings.
            settings: all that results depend on besides the input, as JSON values.

        Raises:
            DataError: the folder cannot be made or written, holds something else or was begun with other settings,
                or another process holds it; then nothing in it was touched.
        """
        folder = cls(path.absolute())  # a worker may have another working directory
        with folder._locked():
            plain = json.loads(json.dumps(settings))  # as it comes back from the file
            begins = folder._check_manifest(plain)
            try:
                with describing_os_errors(folder.path):
                    folder._clean()
                    folder.scratch.mkdir(exist_ok=True)
                    if begins:
                        write_json(folder.manifest, plain)
                    yield folder
            except BaseException:
                if begins and not folder._has_results():
                    folder._clear()
                raise
            finally:
                shutil.rmtree(folder.scratch, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder; what this makes and the work leaves empty is removed at the end."""
        path = self.path
        try:
            if (path.exists() or path.is_symlink()) and not path.is_dir():
                raise DataError(f"output={path} is no folder")
            if path.exists() and not self.tasks.is_dir() and any(PARTIAL not in entry.name for entry in path.iterdir()):
                raise DataError(f"output={path} is not empty, and what it holds is not of this program")
        except OSError as error:
            raise DataError(f"output={path} cannot be made: {error.strerror or error}") from error
        with hold_folder(path, "output", self.tasks / "lock"):
            yield

    def _check_manifest(self, settings: dict[str, Any]) -> bool:
        """Compare settings with those of the manifest; returns whether there is none yet."""
        begun = read_json(self.manifest)
        if not isinstance(begun, dict):
            if self.listing():
                raise DataError(f"{self.manifest} is missing or broken, and {self.path} holds finished work: "
                                "remove the folder")  # fmt: skip
            return True
        if changed := differences(begun, settings):
            raise DataError(f"output={self.path} was begun with other settings: {', '.join(changed)}; "
                            "give another output=")  # fmt: skip
        return False

    def _clean(self) -> None:
        """Remove what a run that was killed left half done."""
        for folder in (self.path, self.tasks):
            for leftover in folder.glob(f".*{PARTIAL}*"):
                leftover.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _has_results(self) -> bool:
        """Tell whether there is a result, or an array beside the done markers, which takes long to compute too."""
        results = self.path.glob(f"{self.result_name}-*{self.result_suffix}")
        return any(True for _ in results) or any(True for _ in self.tasks.glob("*.npz"))

    def _clear(self) -> None:
        """Remove all but the folder and the lock."""
        self._clean()
        self.forget_index()
        for path in self.tasks.glob("*.*"):
            path.unlink(missing_ok=True)


@contextmanager
def hold_folder(path: Path, key: str, lock: Path | None = None) -> Iterator[None]:
    """Hold a folder as the only process that writes there; what this makes and the work leaves empty is removed.

    Args:
        path: made where it is missing.
        key: of the settings, by which messages name the folder.
        lock: file in it; default `.lock`.

    Raises:
        DataError: it cannot be made or written, or another process holds it; then nothing in it was touched.
    """
    lock = path / ".lock" if lock is None else lock
    try:
        made = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
        lock.parent.mkdir(parents=True, exist_ok=True)
        # The system ends the lock with the process, however that ends; forked processes do not inherit it.
        held = FileLock(lock)
        held.acquire(blocking=False)
    except Timeout as error:
        raise DataError(f"{key}={path} is being written by another run") from error
    except OSError as error:
        raise DataError(f"{key}={path} cannot be made: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            if made and [entry.name for entry in lock.parent.iterdir()] == [lock.name]:
                lock.unlink()
        held.release()
        with suppress(OSError):  # what is not empty stays
            for folder in made:
                folder.rmdir()


@contextmanager
def describing_os_errors(path: Path) -> Iterator[None]:
    """Turn the system's error while work is done into one line.

    Args:
        path: named where the error names no file of its own.

    Raises:
        DataError: names the file and the reason.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: {error.strerror or error}; the same command goes on from what is finished"
        ) from error


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `key was X and is Y` for each value, by its dotted key, in which two nested records differ."""
    before, after = _flat(was), _flat(now)
    return [
        f"{key} was {_shown(before.get(key))} and is {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
