"""Write the files of programs, whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from simzss.atomic import atomic_write
from simzss.errors import DataError


def save_file(path: Path, content: bytes | Callable[[BinaryIO], Any], key: str = "") -> None:
    """Write a file, in a folder that is made where it is missing, whole or not at all.

    Args:
        path: of the file.
        content: bytes, or a function that writes to the open file.
        key: of the settings, by which the message names the file.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content, durable=False)
    except OSError as error:
        named = f"{key}={path}" if key else str(path)
        raise DataError(f"{named} cannot be written: {error.strerror or error}") from error
