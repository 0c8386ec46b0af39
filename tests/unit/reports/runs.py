"""Made-up output folders of `simzss eval` for the tests of comparisons."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from simzss.evaluation.counts import Counts, counts_file, save_counts
from simzss.evaluation.metrics import class_counts, mious


def counts_of(
    images: Sequence[str], classes: tuple[str, ...], seed: int = 0, quality: float = 0.5, absent: tuple[int, ...] = ()
) -> Counts:
    """Random counts; the truth of an image depends on its name alone, the predictions on seed and `quality` too."""
    k, pixels = len(classes), 400
    present = torch.tensor([label for label in range(k) if label not in absent])
    matrices = []
    for name in images:
        own = torch.Generator().manual_seed(sum(name.encode()))
        truth = present[torch.randint(len(present), (pixels,), generator=own)]
        generator = torch.Generator().manual_seed(1000 * seed + sum(name.encode()))
        guess = present[torch.randint(len(present), (pixels,), generator=generator)]
        share = quality * torch.rand(1, generator=generator) * 2
        prediction = torch.where(torch.rand(pixels, generator=generator) < share, truth, guess)
        matrices.append(torch.bincount(truth * k + prediction, minlength=k * k).view(k, k))
    stacked = torch.stack(matrices)
    per_image = torch.stack([class_counts(matrix) for matrix in stacked])
    return Counts(tuple(images), classes, per_image, stacked.sum(dim=0))


def write_run(folder: Path, columns: dict[tuple[str, str], Counts], **results: Any) -> Path:
    """An output folder with results and counts of (benchmark, names); `results` adds or replaces whole results."""
    content: dict[str, Any] = {}
    for (benchmark, names), counts in columns.items():
        save_counts(counts_file(folder, benchmark, names), counts)
        score = {
            "mIoU": float(mious(counts.per_image.sum(dim=0))),
            "aAcc": 1.0,
            "per_class": {},
            "images": len(counts.images),
        }
        if names == "plain":
            content[benchmark] = score | content.get(benchmark, {})
        else:
            content.setdefault(benchmark, {})[names] = score
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content | results), encoding="utf-8")
    return folder
