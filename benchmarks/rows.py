"""Rows of benchmarks: two ways of doing the same, timed in turn."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One comparison; `ratio` above 1 means that ours is better.

    Attributes:
        name: of the row.
        unit: of `ours` and `baseline`.
        ours: median over the runs.
        baseline: median over the runs.
        ratio: median of the ratios of runs that followed one another.
        command: that makes this row.
    """

    name: str
    unit: str
    ours: float
    baseline: float
    ratio: float
    command: str


def throughput(
    bench: str, name: str, unit: str, amount: float, ours: Callable[[], Any], baseline: Callable[[], Any], runs: int
) -> Row:
    """Time both in turn, after one run of each that does not count; `amount` of work per run in units times seconds."""
    ours()
    baseline()
    pairs = [(amount / _seconds(ours), amount / _seconds(baseline)) for _ in range(runs)]
    mine, theirs = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    command = f"make bench BENCH={bench}"
    return Row(name, unit, statistics.median(mine), statistics.median(theirs), ratio, command)


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def machine() -> str:
    """Return processor, cores, accelerator and versions, as every figure needs them."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = lines[0] if lines else model
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    parts = [
        model,
        f"{len(os.sched_getaffinity(0))} cores",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
    ]
    if accelerator is not None and accelerator.type == "cuda":
        parts.insert(2, torch.cuda.get_device_name())
    return ", ".join(parts)


def write(path: Path, rows: list[Row]) -> None:
    """Write the rows as JSON; rows of other names that the file holds are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if path.is_file():
        made = {row.name for row in rows}
        kept = [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if row["name"] not in made]
    content = {"machine": machine(), "rows": kept + [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
