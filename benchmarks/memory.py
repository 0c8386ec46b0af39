"""Rows `labels_memory_…`: peak memory of making labels of 171 classes, against all logits at full resolution.

Each side runs in a process of its own, whose peak before and after is compared; what torch itself needs is not counted.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.peaks import Peak, apart
from benchmarks.rows import Row
from simzss.data.settings import Background
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.inference.scores import ScoreMap

Shape = tuple[int, int]
CLASSES = 171
CASES = {"640x480": ((480, 640), (24, 32)), "2048x1024": ((1024, 2048), (24, 48))}


def run() -> list[Row]:
    """Return one row for each size of image."""
    rows = []
    for name, case in CASES.items():
        found = [apart(_peak, action, *case) for action in (_ours, _straightforward)]
        command = "make bench BENCH=memory"
        rows.append(Row(f"labels_memory_{name}", "MB", found[0], found[1], found[1] / found[0], command))
    return rows


def _peak(action: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor], size: Shape, grid: Shape) -> float:
    """Measure the megabytes that `action` adds to what this process holds, at their peak."""
    coarse = F.interpolate(torch.randn(1, CLASSES, 6, 6), size=grid, mode="bicubic")
    action(coarse, (64, 64))  # loads what it needs
    peak = Peak()
    action(coarse, size)
    return peak.megabytes()


def _ours(coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    names = tuple(map(str, range(CLASSES)))
    rule = Classifier(names, torch.zeros(CLASSES, 1), (1,) * CLASSES, Background(), temperature=0.05)
    return ScoreMap(coarse, None, (336, 448), (336, 448), size).labels(rule)


def _straightforward(coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
