"""Folders that are replaced whole: whatever ends the writer, the old folder or the new one is there, never neither.

The new folder is written beside the old one and takes its name when it is complete: on Linux both names are exchanged
in one step, elsewhere the old folder is moved aside first, where `find_folder` and the next writer find it.
"""

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from simzss.atomic import PARTIAL, partial_path, sync_folder
from simzss.checksums import SUMS, changed_files, write_sums
from simzss.errors import ModelError

_OLD = "-old"
"""End of the name of a finished folder that was moved aside."""


@contextmanager
def replaced_folder(folder: Path, own: Collection[str]) -> Iterator[Path]:
    """Give an empty folder to write to, which takes the place of `folder` when the block ends without an error.

    Args:
        folder: new, or to be replaced; a link is followed. An error leaves it as it was.
        own: names in it that the block writes; others, such as a README, are carried over.

    Raises:
        ModelError: another process writes this folder.
        OSError: the disk is full, or the folder cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = partial_path(folder)
    with _alone(folder):
        _clean(folder)
        try:
            new.mkdir()
            yield new
            _seal(new)
            if folder.exists():
                _carry_over(folder, new, own)
            _swap(new, folder)
        except OSError as error:
            if error.errno is not None and str(error.filename or "").startswith(str(new)):
                error.filename = str(folder) + str(error.filename).removeprefix(str(new))
            raise
        finally:
            # The old folder after a swap, the new one after an error.
            shutil.rmtree(new, ignore_errors=True)
            _clean(folder)


def find_folder(folder: Path) -> Path:
    """Return a folder, or where it lies while its writer, or the one that was killed, has moved it aside."""
    if folder.exists():
        return folder
    return next(iter(_leftovers(Path(os.path.realpath(folder)), _OLD)), folder)


def check_sums(folder: Path) -> None:
    """Compare the files of a folder with their list, if there is one.

    Raises:
        ModelError: names a file that differs.
    """
    path = folder / SUMS
    if not path.exists():
        return
    try:
        changed = changed_files(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if changed:
        raise ModelError(f"{folder / changed[0]} differs from {SUMS}: it is damaged, or was edited; "
                         f"if that is meant, remove {SUMS}")  # fmt: skip


def check_inside(folder: Path, own: Collection[str]) -> None:
    """Refuse links out of a folder, but to the copies that the hub's client keeps beside it.

    Args:
        folder: may be a link itself.
        own: names in it that are looked at, with all that is below them.

    Raises:
        ModelError: names the link.
    """
    root = folder.resolve()
    allowed = [root] + ([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])
    for path in (below for name in own for below in (folder / name, *(folder / name).rglob("*"))):
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise ModelError(f"{path} is a link out of its folder")


def _leftovers(folder: Path, end: str = "") -> list[Path]:
    """Return the folders that writers of `folder` made beside it."""
    start = f".{folder.name}{PARTIAL}"
    with suppress(OSError):
        found = sorted(folder.parent.iterdir())
        return [path for path in found if path.name.startswith(start) and path.name.endswith(end) and path.is_dir()]
    return []


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the name of a folder as the only process that replaces it."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ModelError(f"model folder {folder} is being written by another process") from error
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _clean(folder: Path) -> None:
    """Put back a folder that was moved aside, and remove what killed writers left."""
    if not folder.exists():
        for old in _leftovers(folder, _OLD)[:1]:
            old.rename(folder)
    for path in _leftovers(folder):
        shutil.rmtree(path, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Flush all files to the disk and write the list of their sums, the last one."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("r+b") as stream:
            os.fsync(stream.fileno())
    write_sums(folder / SUMS, files)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)


def _carry_over(old: Path, new: Path, own: Collection[str]) -> None:
    """Keep what is not ours and the mode of the folder."""
    for path in old.iterdir():
        if path.name in own or path.name == SUMS or PARTIAL in path.name:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link)
        else:
            _link(str(path), str(new / path.name))
    new.chmod(stat.S_IMODE(old.stat().st_mode))


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where the system has no such names."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _swap(new: Path, folder: Path) -> None:
    """Give the new folder its name; the old one is at `new` or beside it then."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        aside = new.with_name(new.name + _OLD)
        folder.rename(aside)
        try:
            new.rename(folder)
        except BaseException:
            aside.rename(folder)
            raise
    sync_folder(folder.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where system or disk cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    current, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(current, os.fsencode(first), current, os.fsencode(second), exchange) == 0
