"""Write index masks as PNG files: finished ones are kept, every missing image is counted and named."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simzss.data.images import open_image
from simzss.errors import DataError
from simzss.progress import progress
from simzss.tasks import hold_folder

from .outputs import save_file

IGNORE = 255
_LISTED = 10  # names that a line lists at most


@dataclass(frozen=True)
class Job:
    """One mask to make.

    Attributes:
        needs: files without which it cannot be made, the photo first.
        mask: file to write.
        draw: renders the mask (H, W) uint8; called only when it is needed.
        size: (H, W) that the annotation says, where it is known before it is drawn.
    """

    needs: tuple[Path, ...]
    mask: Path
    draw: Callable[[], np.ndarray]
    size: tuple[int, int] | None = None


@dataclass
class Report:
    """Count the images of one split.

    Attributes:
        title: name of the split.
        official: number of images that its publication gives.
        made: new masks.
        kept: finished masks.
        repaired: masks that were made again because they could not be read or did not fit.
        missing: files whose lack kept an image out.
    """

    title: str
    official: int
    made: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    repaired: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[Path]:
        """Return all masks that are there now, sorted."""
        return sorted(self.made + self.kept + self.repaired)


def make_masks(
    root: Path, jobs: Sequence[Job], labels: Iterable[int], title: str, official: int, overwrite: bool
) -> Report:
    """Make the masks that are not there yet, as the only process that does.

    A finished mask is kept if it can be read, has the size of its photo and holds no other label.

    Args:
        root: folder of the set, which this holds.
        jobs: one for each mask.
        labels: all values that a mask may hold.
        title: name of the split.
        official: see `Report`.
        overwrite: make finished masks again.

    Raises:
        DataError: an annotation does not fit its photo, a mask cannot be written, or another process holds the folder.
    """
    report = Report(title, official)
    allowed = np.isin(np.arange(256), list(labels))
    with hold_folder(root, "root"):
        _make(jobs, allowed, overwrite, report)
    return report


def _make(jobs: Sequence[Job], allowed: np.ndarray, overwrite: bool, report: Report) -> None:
    for job in progress(jobs, len(jobs), report.title):
        absent = [path.name for path in job.needs if not path.is_file()]
        size = None if absent else photo_size(job.needs[0])
        if size is None:
            report.missing.append(" and ".join(absent) or f"{job.needs[0].name} (unreadable)")
            continue
        there = job.mask.is_file() and not overwrite
        if there and _is_finished(job.mask, size, allowed):
            report.kept.append(job.mask)
            continue
        _require_size(job, size, job.size or size)
        mask = job.draw()
        _require_size(job, size, mask.shape)
        save_mask(job.mask, mask)
        (report.repaired if there else report.made).append(job.mask)


def print_reports(reports: Sequence[Report]) -> None:
    """Print what was done and what is missing.

    Raises:
        DataError: there is not one mask.
    """
    for report in reports:
        done, made, kept = len(report.done), len(report.made), len(report.kept)
        print(f"{report.title}: masks of {done:,} of the official {report.official:,} images "
              f"({made:,} made, {kept:,} already there)")  # fmt: skip
        if report.repaired:
            print(f"{report.title}: {len(report.repaired):,} finished masks could not be read or did not fit, and "
                  f"were made again: {_shorten([path.name for path in report.repaired])}")  # fmt: skip
        if report.missing:
            print(f"{report.title}: {len(report.missing):,} left out for want of "
                  f"{_shorten(report.missing)}", file=sys.stderr)  # fmt: skip
    if not any(report.done for report in reports):
        missing = [name for report in reports for name in report.missing]
        raise DataError(f"no mask could be made; missing: {_shorten(missing) or 'images'}")


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Write an index mask (H, W) uint8 as grey PNG, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    save_file(path, lambda stream: Image.fromarray(mask).save(stream, format="PNG"))


def photo_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) by the header of an image file, None if it cannot be read."""
    try:
        with open_image(path) as image:
            return image.height, image.width
    except ValueError:
        return None


def read_labels(path: Path) -> np.ndarray:
    """Read the stored values (H, W) uint8 of a palette or grey image.

    Raises:
        DataError: unreadable, or no image of indices.
    """
    try:
        with open_image(path) as image:
            # Never converted: the stored value is the label.
            labels = np.asarray(image)
            mode = image.mode
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(f"{path} is an image of mode {mode}, not of 8-bit labels")
    return labels


def relabel(labels: np.ndarray, table: Mapping[int, int], path: Path) -> np.ndarray:
    """Return labels (H, W) uint8 exchanged by the table.

    Raises:
        DataError: a label that the table lacks; names `path`.
    """
    lookup = np.full(256, -1, dtype=np.int16)
    lookup[list(table)] = list(table.values())
    exchanged = lookup[labels]
    if (exchanged < 0).any():
        raise DataError(f"{path} has label {int(labels[exchanged < 0][0])}, which the official table does not hold")
    return exchanged.astype(np.uint8)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: missing or broken.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error


def find_folder(key: str, candidates: Sequence[Path], what: str) -> Path:
    """Return the first of these folders that exists.

    Raises:
        DataError: none does.
    """
    for path in candidates:
        if path.is_dir():
            return path
    raise DataError(f"{key}: {candidates[0]} is no folder; {what}")


def _require_size(job: Job, photo: tuple[int, ...], annotation: tuple[int, ...]) -> None:
    if photo != annotation:
        raise DataError(f"{job.needs[0]} has {photo[0]} x {photo[1]} pixels (height x width), its annotation "
                         f"{annotation[0]} x {annotation[1]}")  # fmt: skip


def _is_finished(path: Path, size: tuple[int, int], allowed: np.ndarray) -> bool:
    try:
        labels = read_labels(path)
    except DataError:
        return False
    return labels.shape == size and bool(allowed[labels].all())


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more:,} more" if more > 0 else "")
