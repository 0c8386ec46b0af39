"""What the fingerprints of all images together mean for each task: which images go, and whose captions go where."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep.captions.duplicates import FINGERPRINT_VERSION, Fingerprints, exact_copies, load_arrays, near_copies
from data_prep.captions.filters import EXACT_COPY, NEAR_COPY, Filters
from data_prep.captions.output import OutputFolder
from data_prep.captions.records import Task, key_of
from simzss.errors import InputError


@dataclass(frozen=True)
class Repeats:
    """Duplicates of the whole input in one task, by the position of an image in it.

    Attributes:
        dropped: reason and first copy of the images that repeat an earlier one.
        captions: those of later copies, for the images that stay.
    """

    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    captions: dict[int, list[str]] = field(default_factory=dict)

    def digest(self) -> str:
        """Changes when a decision does; empty where there is none."""
        if not self.dropped and not self.captions:
            return ""
        content = repr((sorted(self.dropped.items()), sorted(self.captions.items())))
        return hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()


@dataclass(frozen=True)
class TaskFingerprints:
    """What the first pass found out about the images of a task that the filters keep.

    Attributes:
        stamp: of the task's input.
        positions: (n,) int64, places of the images in the task.
        fingerprints: of the n images.
        captions: of each image; none of any where captions are not merged.
    """

    stamp: str
    positions: np.ndarray
    fingerprints: Fingerprints
    captions: list[list[str]]

    def save(self, stream: BinaryIO) -> None:
        """Write to an open file."""
        text = json.dumps({"stamp": self.stamp, "captions": self.captions})
        np.savez(
            stream,
            version=np.int64(FINGERPRINT_VERSION),
            positions=self.positions,
            digests=self.fingerprints.digests,
            hashes=self.fingerprints.hashes,
            texts=np.frombuffer(text.encode(), np.uint8),
            allow_pickle=False,
        )

    @classmethod
    def load(cls, path: Path) -> "TaskFingerprints":
        """Read what `save` wrote.

        Raises:
            InputError: not there, broken, or of another version.
        """
        positions, digests, hashes, texts = load_arrays(path, "positions", "digests", "hashes", "texts")
        content = json.loads(texts.tobytes())
        return cls(content["stamp"], positions, Fingerprints(digests, hashes), content["captions"])


def no_repeats(number: int) -> Repeats:
    """Where duplicates are not looked for."""
    return Repeats()


def find_repeats(output: OutputFolder, tasks: int, filters: Filters) -> Callable[[int], Repeats]:
    """Decide about every image by the fingerprints of the first pass. 32 bytes an image are held,
    and its captions where they are merged.

    The first of equal images in the order of the input stays; a near-duplicate is compared with the images that stay.
    Tasks without fingerprints, which have failed, take no part.

    Returns:
        The decisions of a task by its number.
    """
    found = [_load(output, number) for number in range(tasks)]
    bounds = np.cumsum([0, *(len(item.positions) for item in found)])
    positions = np.concatenate([item.positions for item in found])
    prints = Fingerprints.join([item.fingerprints for item in found])
    itself = np.arange(len(prints))
    first = itself if filters.exact_duplicates == "keep" else exact_copies(prints.digests)
    near = itself
    if filters.near_duplicates is not None:
        near = near_copies(prints.hashes, filters.near_duplicates, first == itself)
    merging = filters.exact_duplicates == "merge"
    merged = _merged_captions(found, first, bounds) if merging else {}
    exact_reason = f"{EXACT_COPY}, which got its captions" if merging else EXACT_COPY

    def key(image: int) -> str:
        task = int(np.searchsorted(bounds, image, side="right")) - 1
        return f"first copy: {key_of(task, int(positions[image]))}"

    def repeats(number: int) -> Repeats:
        dropped, captions = {}, {}
        for image in range(bounds[number], bounds[number + 1]):
            place = int(positions[image])
            if first[image] != image:
                dropped[place] = (exact_reason, key(first[image]))
            elif near[image] != image:
                dropped[place] = (NEAR_COPY, key(near[image]))
            elif image in merged:
                captions[place] = merged[image]
        return Repeats(dropped, captions)

    return repeats


def has_fingerprints(output: OutputFolder, task: Task) -> bool:
    """Whether the fingerprints of a task are there, and those of its present input."""
    return _load(output, task.number).stamp == task.stamp


def _merged_captions(found: list[TaskFingerprints], first: np.ndarray, bounds: np.ndarray) -> dict[int, list[str]]:
    """Captions of later copies, in order, by the image that they repeat."""
    merged: dict[int, list[str]] = defaultdict(list)
    later = np.flatnonzero(first != np.arange(len(first)))
    for image, task in zip(later, np.searchsorted(bounds, later, side="right") - 1, strict=True):
        merged[int(first[image])] += found[task].captions[image - bounds[task]]
    return dict(merged)


def _load(output: OutputFolder, number: int) -> TaskFingerprints:
    """Fingerprints of a task; those of none where they are missing, because the task failed, or broken."""
    try:
        return TaskFingerprints.load(output.fingerprints(number))
    except InputError:
        return TaskFingerprints("", np.zeros(0, np.int64), Fingerprints.of([]), [])
