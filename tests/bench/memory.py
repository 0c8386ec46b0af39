"""Rows `labels_memory_…`: peak memory of making labels of 171 classes, against all logits at full resolution.

Each side runs in a process of its own, whose peak before and after is compared; what torch itself needs is not counted.
"""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from simzss.segmentation.background import Background
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.scores import ScoreMap
from tests.bench.rows import Row

Shape = tuple[int, int]
CLASSES = 171
CASES = {"640x480": ((480, 640), (24, 32)), "2048x1024": ((1024, 2048), (24, 48))}


def run() -> list[Row]:
    """One row for each size of image."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, case in CASES.items():
        found = []
        for action in (_ours, _straightforward):
            with context.Pool(1) as pool:
                found.append(pool.apply(_peak, (action, *case)))
        command = "make bench BENCH=memory"
        rows.append(Row(f"labels_memory_{name}", "MB", found[0], found[1], found[1] / found[0], command))
    return rows


def _peak(action: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor], size: Shape, grid: Shape) -> float:
    """Megabytes that `action` adds to what this process holds, at their peak (Linux)."""
    coarse = F.interpolate(torch.randn(1, CLASSES, 6, 6), size=grid, mode="bicubic")
    action(coarse, (64, 64))  # loads what it needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = _status("VmRSS")
    action(coarse, size)
    return max(_status("VmHWM") - before, 1) / 1024


def _status(key: str) -> int:
    """A figure of this process in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _ours(coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    names = tuple(map(str, range(CLASSES)))
    rule = Classifier(names, torch.zeros(CLASSES, 1), (1,) * CLASSES, Background(), temperature=0.05)
    return ScoreMap(coarse, None, (336, 448), (336, 448), size).labels(rule)


def _straightforward(coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
