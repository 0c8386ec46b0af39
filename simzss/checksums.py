"""SHA-256 of files, and the lists beside them by which damage is noticed when they are read.

A list is what `sha256sum --check` reads: `<64 hexadecimal digits>  <name>` a line.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from simzss.atomic import atomic_write

SUMS = "SHA256SUMS"
"""Name of the list of a folder."""


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(path: Path, files: Iterable[Path]) -> None:
    """Write the list of files, which lie beside it or below, atomically."""
    lines = [f"{sha256_of(file)}  {file.relative_to(path.parent).as_posix()}\n" for file in files]
    atomic_write(path, "".join(lines).encode())


def changed_files(path: Path) -> list[str]:
    """Return the names on a list whose files are missing or others than when it was written.

    Args:
        path: the list; names on it that lead out of its folder count as changed.

    Raises:
        ValueError: it is no such list.
        OSError: a file cannot be read.
    """
    changed = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if entry is None:
            raise ValueError(f"{path} is no list of SHA-256 sums")
        digest, name = entry.groups()
        file = path.parent / name
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not inside or not file.is_file() or sha256_of(file) != digest:
            changed.append(name)
    return changed
