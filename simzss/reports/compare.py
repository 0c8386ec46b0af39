"""Differences between runs of `simzss eval`, with intervals from a paired bootstrap over images."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simzss.errors import ConfigError, DataError
from simzss.evaluation.bootstrap import difference_interval
from simzss.evaluation.counts import Counts, counts_file, load_counts
from simzss.evaluation.metrics import mious
from simzss.evaluation.results import ENGINEERED, PLAIN
from simzss.reports.tables import finite, kind

_ROUNDING = 0.01  # per cent points: results.json may have been rounded, but is not of another measurement


@dataclass(frozen=True)
class Column:
    """Scores of a run that are compared.

    Attributes:
        run: folder of the run.
        benchmark: its name.
        names: class names that were used, `plain` or `engineered`.
    """

    run: str
    benchmark: str
    names: str


@dataclass(frozen=True)
class NotCompared(Column):
    """A column that only one run has, or that has nothing to compare."""

    reason: str


@dataclass(frozen=True)
class Difference(Column):
    """One benchmark in two runs, on the images that both have.

    Attributes:
        reference_miou: of the reference, per cent.
        run_miou: of the run, per cent.
        difference: run - reference, per cent points.
        low: lower end of the interval of the difference.
        high: upper end.
        images: number of images that both have.
        only_reference: number of images that only the reference has, left out.
        only_run: number of images that only the run has, left out.
        other_truth: images of both whose number of truth pixels of some class differs: measured against other masks.
    """

    reference_miou: float
    run_miou: float
    difference: float
    low: float
    high: float
    images: int
    only_reference: int
    only_run: int
    other_truth: int

    @property
    def excludes_zero(self) -> bool:
        """Tell whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Every run against the first."""

    reference: str
    resamples: int
    seed: int
    confidence: float
    differences: tuple[Difference, ...]
    not_compared: tuple[NotCompared, ...]


def compare_runs(folders: Sequence[Path], resamples: int, seed: int, confidence: float) -> Comparison:
    """Compare every benchmark and names column of each run with the first run's.

    Args:
        folders: output folders of `simzss eval`, two or more.
        resamples: number of resamples.
        seed: of the draws.
        confidence: share of the resamples inside the interval.

    Raises:
        InputError: fewer than two runs, a folder that is none of `simzss eval`, or nothing that can be compared.
    """
    if len(folders) < 2:
        raise ConfigError("give two runs or more: simzss report RUN RUN… output_dir=DIR")
    reference, *runs = [_Run.read(folder) for folder in folders]
    differences: list[Difference] = []
    not_compared: list[NotCompared] = []
    for run in runs:
        for benchmark, names in _columns(reference, run):
            reason = _reason(reference, run, benchmark, names)
            if reason is None:
                first, second = (one.counts(benchmark, names) for one in (reference, run))
                _require_same_classes(reference, run, benchmark, names, first, second)
                column = Column(str(run.folder), benchmark, names)
                difference = compare_counts(column, first, second, resamples, seed, confidence)
                if difference is not None:
                    differences.append(difference)
                    continue
                reason = "no image that counts is in both"
            not_compared.append(NotCompared(str(run.folder), benchmark, names, reason))
    if not differences:
        why = f": {not_compared[0].benchmark}, {not_compared[0].reason}" if not_compared else ""
        raise DataError(f"{' and '.join(map(str, folders))} have no benchmark to compare{why}")
    return Comparison(str(reference.folder), resamples, seed, confidence, tuple(differences), tuple(not_compared))


def compare_counts(
    column: Column, reference: Counts, run: Counts, resamples: int, seed: int, confidence: float
) -> Difference | None:
    """Compute the difference of a column on the images that both have; None if these have no pixel that counts."""
    # In the order of their names, so that the draws do not depend on the order in which the files list them.
    common = sorted(set(reference.images) & set(run.images))
    first, second = _of_images(reference, common), _of_images(run, common)
    if not bool(first[:, :, 2].any() & second[:, :, 2].any()):
        return None
    before, after = (float(mious(counts.sum(dim=0))) for counts in (first, second))
    counted = first[:, :, 2].any(dim=1) | second[:, :, 2].any(dim=1)  # the others add nothing to any resample
    low, high = difference_interval(first[counted], second[counted], resamples, seed, confidence)
    return Difference(
        run=column.run,
        benchmark=column.benchmark,
        names=column.names,
        reference_miou=before,
        run_miou=after,
        difference=after - before,
        low=low,
        high=high,
        images=len(common),
        only_reference=len(reference.images) - len(common),
        only_run=len(run.images) - len(common),
        other_truth=int((first[:, :, 2] != second[:, :, 2]).any(dim=1).sum()),
    )


def _of_images(counts: Counts, names: Sequence[str]) -> Tensor:
    """Return the counts (n, K, 3) of some images."""
    index = {name: i for i, name in enumerate(counts.images)}
    return counts.per_image[torch.tensor([index[name] for name in names], dtype=torch.int64)]


@dataclass(frozen=True)
class _Run:
    """Output folder of `simzss eval` and its results."""

    folder: Path
    results: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "_Run":
        """Read `results.json`."""
        path = folder / "results.json"
        if not path.is_file():
            raise DataError(f"{path} does not exist: {folder} is no output folder of simzss eval")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict) or not all(isinstance(result, dict) for result in content.values()):
            raise DataError(f"{path} holds no results of simzss eval")
        return cls(folder, content)

    def score(self, benchmark: str, names: str) -> float | None:
        """Return mIoU of a benchmark with these class names; None where there is none."""
        result = self.results.get(benchmark, {})
        if kind(result) != "segmentation":
            return None
        column = result if names == PLAIN else result.get(names)
        return finite(column.get("mIoU")) if isinstance(column, Mapping) else None

    def path(self, benchmark: str, names: str) -> Path:
        """Return the file of the counts."""
        return counts_file(self.folder, benchmark, names)

    def counts(self, benchmark: str, names: str) -> Counts:
        """Read the counts and check them against the score."""
        path, score = self.path(benchmark, names), self.score(benchmark, names)
        counts = load_counts(path)
        value = float(mious(counts.per_image.sum(dim=0)))
        if score is None or not abs(value - score) <= _ROUNDING:
            results = self.folder / "results.json"
            raise DataError(
                f"counts {path} give mIoU {value:.2f} but {results} says {score}: of different measurements"
            )
        return counts


def _columns(reference: _Run, run: _Run) -> Iterator[tuple[str, str]]:
    """Yield every benchmark and names column that a run has a score for, in the order of the reference."""
    for benchmark in dict.fromkeys((*reference.results, *run.results)):
        for names in (PLAIN, ENGINEERED):
            if reference.score(benchmark, names) is not None or run.score(benchmark, names) is not None:
                yield benchmark, names


def _reason(reference: _Run, run: _Run, benchmark: str, names: str) -> str | None:
    """Return why a column cannot be compared, None if it can.

    Raises:
        DataError: one run keeps the counts of the column, the other has lost them.
    """
    for one in (reference, run):
        if one.score(benchmark, names) is None:
            missing = one.results.get(benchmark, {}).get("missing")
            return f"not measured by {one.folder}" + (f": {missing}" if missing else "")
    absent = [one.path(benchmark, names) for one in (reference, run) if not one.path(benchmark, names).is_file()]
    if len(absent) == 1:
        raise DataError(f"counts {absent[0]} do not exist: measure that run again by simzss eval")
    # Both alike: an evaluation keeps no counts of some results, such as those of the untrained model.
    return f"neither run keeps counts: {absent[0].name}" if absent else None


def _require_same_classes(
    reference: _Run, run: _Run, benchmark: str, names: str, first: Counts, second: Counts
) -> None:
    """Reject counts of different classes."""
    if first.classes == second.classes:
        return
    if len(first.classes) != len(second.classes):
        found = f"{len(first.classes)} and {len(second.classes)} of them"
    else:
        a, b = next((a, b) for a, b in zip(first.classes, second.classes, strict=True) if a != b)
        found = f"{a!r} and {b!r} in the same place"
    raise DataError(
        f"{reference.path(benchmark, names)} and {run.path(benchmark, names)} have different classes: {found}"
    )
