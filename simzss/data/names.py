"""Names of files that data give, such as lists of images: what they may be before they become paths."""

import re
from pathlib import Path

from simzss.errors import DataError, printable

LEADS_OUT = "leads out of its folder"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OUT = re.compile(r"[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.S)  # also as Windows reads it


def name_fault(name: str) -> str | None:
    """Return why a name that data give must not become a path below a folder, as the end of a sentence; None if it may.

    Subfolders are no fault.
    """
    if not name.strip():
        return "is empty"
    if _CONTROL.search(name):
        return "holds control characters"
    return LEADS_OUT if _OUT.match(name) else None


def checked_name(name: str, source: str | Path) -> str:
    """Return a name that data give, as it is.

    Args:
        name: of a file below some folder, maybe in subfolders.
        source: of the name, for the message.

    Raises:
        DataError: it is absolute, leads out of the folder, or holds characters that no honest name has.
    """
    if fault := name_fault(name):
        raise DataError(f"{source}: the name {printable(name)[:200]!r} {fault}")
    return name
