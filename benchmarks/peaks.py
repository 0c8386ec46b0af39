"""Peak memory of an action, in a process of its own: of the accelerator, or without one of the host (Linux)."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simzss.device import allocator, best_device


def apart(action: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a module's function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(action, arguments)


class Peak:
    """Peak of what this process holds, above what it held when this was made."""

    def __init__(self) -> None:
        self.device = best_device()
        self.memory = allocator(self.device)
        if self.memory is None:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
            self.before = 1024 * _status("VmRSS")
        else:
            self.memory.reset_peak_memory_stats(self.device)
            self.before = self.memory.memory_allocated(self.device)

    def megabytes(self) -> float:
        """Return the peak so far."""
        if self.memory is None:
            return max(1024 * _status("VmHWM") - self.before, 1) / 2**20
        return float(self.memory.max_memory_allocated(self.device) - self.before) / 2**20


def _status(key: str) -> int:
    """Read a figure of this process in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
