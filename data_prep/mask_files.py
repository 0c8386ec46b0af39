"""Index masks as PNG files: written whole or not at all, finished ones kept, every missing image counted and named."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from simzss.errors import InputError

IGNORE = 255
_LISTED = 10  # names that a line lists at most


@dataclass(frozen=True)
class Job:
    """One mask to make.

    Args:
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
    """What became of the images of one split: mask files made, kept, and made again because they could not be read.

    `missing` names what kept an image out; `official` is the number of images that the split's publication gives.
    """

    title: str
    official: int
    made: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    repaired: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[Path]:
        """All masks that are there now, sorted."""
        return sorted(self.made + self.kept + self.repaired)


def make_masks(jobs: Sequence[Job], labels: Iterable[int], title: str, official: int, overwrite: bool) -> Report:
    """Make the masks that are not there yet; `labels` are all values that a mask may hold.

    A finished mask is kept if it can be read, has the size of its photo and holds no other label.

    Raises:
        InputError: an annotation does not fit its photo, or a mask cannot be written.
    """
    report = Report(title, official)
    allowed = np.isin(np.arange(256), list(labels))
    for job in track(jobs, description=title, console=Console(stderr=True)):
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
    return report


def print_reports(reports: Sequence[Report]) -> None:
    """Say what was done and what is missing.

    Raises:
        InputError: there is not one mask.
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
        raise InputError(f"no mask could be made; missing: {_shorten(missing) or 'images'}")


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Write an index mask (H, W) uint8 as grey PNG; a rename makes it visible in one step.

    Raises:
        InputError: it cannot be written.
    """
    write_whole(path, lambda partial: Image.fromarray(mask).save(partial, format="PNG"))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, which then takes its name.

    Raises:
        InputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def photo_size(path: Path) -> tuple[int, int] | None:
    """(height, width) by the header of an image file, None if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # Pillow raises a dozen types on broken files
        return None


def read_labels(path: Path) -> np.ndarray:
    """The stored values (H, W) uint8 of a palette or grey image.

    Raises:
        InputError: unreadable, or no image of indices.
    """
    try:
        with Image.open(path) as image:
            # Never converted: the stored value is the label.
            labels = np.asarray(image)
            mode = image.mode
    except Exception as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise InputError(f"{path} is an image of mode {mode}, not of 8-bit labels")
    return labels


def relabel(labels: np.ndarray, table: Mapping[int, int], path: Path) -> np.ndarray:
    """Labels (H, W) exchanged by the table, uint8.

    Raises:
        InputError: a label that the table lacks; names `path`.
    """
    lookup = np.full(256, -1, dtype=np.int16)
    lookup[list(table)] = list(table.values())
    exchanged = lookup[labels]
    if (exchanged < 0).any():
        raise InputError(f"{path} has label {int(labels[exchanged < 0][0])}, which the official table does not hold")
    return exchanged.astype(np.uint8)


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: missing or broken.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error


def find_folder(key: str, candidates: Sequence[Path], what: str) -> Path:
    """The first of these folders that exists.

    Raises:
        InputError: none does.
    """
    for path in candidates:
        if path.is_dir():
            return path
    raise InputError(f"{key}: {candidates[0]} is no folder; {what}")


def _require_size(job: Job, photo: tuple[int, ...], annotation: tuple[int, ...]) -> None:
    if photo != annotation:
        raise InputError(f"{job.needs[0]} has {photo[0]} x {photo[1]} pixels (height x width), its annotation "
                         f"{annotation[0]} x {annotation[1]}")  # fmt: skip


def _is_finished(path: Path, size: tuple[int, int], allowed: np.ndarray) -> bool:
    try:
        labels = read_labels(path)
    except InputError:
        return False
    return labels.shape == size and bool(allowed[labels].all())


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more:,} more" if more > 0 else "")
