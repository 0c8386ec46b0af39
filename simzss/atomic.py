"""Files that are written whole or not at all."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial-"
"""In the name of a file that is being written, before the machine and the process that write it."""


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
    return path.with_name(f".{path.name}{PARTIAL}{socket.gethostname()}-{os.getpid()}")


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


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
