"""Files that are written whole or not at all, with the modes that other files of the user have."""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".partial-"
"""In the name of a file that is being written, before the machine and the process that write it."""


def atomic_write(path: Path, content: bytes | Callable[[BinaryIO], Any], durable: bool = True) -> None:
    """Write a file that appears with its full content or not at all, even when the machine stops.

    Args:
        path: in a folder that exists.
        content: bytes, or a function that writes to the open file.
        durable: flush to the disk, which takes milliseconds; False for small files that are checked when read.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason; `filename` is `path`.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                _call(content, stream)
            if durable:
                sync(stream)
        partial.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise


def _call(content: Callable[[BinaryIO], Any], stream: BinaryIO) -> None:
    """Let a library write, and raise the system's own error where it raises another one from that."""
    try:
        content(stream)
    except OSError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from error


def partial_path(path: Path) -> Path:
    """Return the name under which this process writes `path` until it is whole."""
    return path.with_name(f".{path.name}{PARTIAL}{socket.gethostname()}-{os.getpid()}")


def sync(stream: BinaryIO) -> None:
    """Flush an open file to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system lets a folder be opened (Windows does not)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Not with the library's `save_file`, whose files only their owner can read.
    """
    atomic_write(path, pack_tensors(tensors, metadata))


def pack_tensors(tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file, equal for what is equal.

    The library writes metadata in an order that changes from call to call.
    """
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    if metadata is None or len(metadata) < 2:
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; half a surrogate pair, as file names may hold, stays the JSON escape that it was."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    atomic_write(path, text.encode(errors="backslashreplace"))


_CHECK = "check"


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a hash of itself."""
    write_json(path, {**record, _CHECK: _hash(record)})


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what `write_record` wrote, without its hash; None where it is missing or damaged.

    An object without a hash, as version 0.1 wrote it, is returned as it is.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        return None
    check = content.pop(_CHECK, None)
    return content if check in (None, _hash(content)) else None


def _hash(record: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(record))  # as it comes back: tuples are lists, keys are strings
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> Any:
    """Return JSON content; None where there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
