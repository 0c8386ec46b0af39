"""Peak memory of an action, in a process of its own (Linux)."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any


def apart(action: Callable[..., Any], *arguments: Any) -> Any:
    """What an action of a module returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(action, arguments)


class Peak:
    """Peak of what this process holds, above what it held when this was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
        self.before = _status("VmRSS")

    def megabytes(self) -> float:
        """So far."""
        return max(_status("VmHWM") - self.before, 1) / 1024


def _status(key: str) -> int:
    """A figure of this process in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
