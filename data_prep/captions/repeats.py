"""Decide for each task which images repeat others, by the fingerprints of all."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from simzss.concepts.concept import Caption
from simzss.errors import DataError

from .duplicates import FINGERPRINT_VERSION, Fingerprints, exact_copies, load_arrays, near_copies
from .filters import EXACT_COPY, NEAR_COPY
from .output import OutputFolder
from .records import key_of
from .settings import FilterSettings


@dataclass(frozen=True)
class Repeats:
    """Duplicates of the whole input in one task, by the position of an image in it.

    Attributes:
        dropped: reason and first copy of the images that repeat an earlier one.
        captions: those of later copies, for the images that stay.
    """

    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    captions: dict[int, list[Caption]] = field(default_factory=dict)

    def digest(self) -> str:
        """Return a digest of the decisions, empty where there is none."""
        if not self.dropped and not self.captions:
            return ""
        content = repr((sorted(self.dropped.items()), sorted(self.captions.items())))
        return hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()


@dataclass(frozen=True)
class TaskFingerprints:
    """Images of a task that the filters keep.

    Attributes:
        stamp: of the task's input.
        positions: (n,) int64, of the images in the task.
        fingerprints: of the n images.
        captions: annotated, of each image; None where they are not merged, or not asked for.
    """

    stamp: str
    positions: np.ndarray
    fingerprints: Fingerprints
    captions: list[list[Caption]] | None = None

    def save(self, stream: BinaryIO) -> None:
        """Write to an open file."""
        texts = None if self.captions is None else [[text.to_json() for text in group] for group in self.captions]
        np.savez(
            stream,
            version=np.int64(FINGERPRINT_VERSION),
            stamp=_bytes(self.stamp),
            positions=self.positions,
            digests=self.fingerprints.digests,
            hashes=self.fingerprints.hashes,
            captions=_bytes(texts),
            allow_pickle=False,
        )

    @classmethod
    def load(cls, path: Path, captions: bool = False) -> "TaskFingerprints":
        """Read what `save` wrote.

        Raises:
            DataError: not there, broken, or of another version.
        """
        stamp, positions, digests, hashes = load_arrays(path, "stamp", "positions", "digests", "hashes")
        texts = json.loads(load_arrays(path, "captions")[0].tobytes()) if captions else None
        groups = None if texts is None else [[Caption.from_json(text) for text in group] for group in texts]
        return cls(json.loads(stamp.tobytes()), positions, Fingerprints(digests, hashes), groups)


def find_repeats(output: OutputFolder, stamps: Sequence[str], filters: FilterSettings) -> Callable[[int], Repeats]:
    """Decide about every image by the fingerprints of all tasks; about 100 bytes an image are held.

    The first of equal images in the order of the input stays; a near-duplicate is compared with the images that stay.
    Of tasks that failed there are no fingerprints: they take no part.

    Args:
        output: the folder.
        stamps: of the present input, by task.
        filters: which duplicates are looked for, and what becomes of them.

    Returns:
        The decisions of a task by its number.
    """
    found = [_load(output, number, stamp) for number, stamp in enumerate(stamps)]
    bounds = np.cumsum([0, *(len(item.positions) for item in found)])
    positions = np.concatenate([np.zeros(0, np.int64), *(item.positions for item in found)])
    prints = Fingerprints.join([item.fingerprints for item in found])
    del found
    itself = np.arange(len(prints))
    first = itself if filters.exact_duplicates == "keep" else exact_copies(prints.digests)
    near = itself
    if filters.near_duplicates is not None:
        near = near_copies(prints.hashes, filters.near_duplicates, first == itself)
    merging = filters.exact_duplicates == "merge"
    merged = _merged_captions(output, stamps, first, bounds) if merging else {}
    exact_reason = f"{EXACT_COPY}, which got its captions" if merging else EXACT_COPY

    def key(image: int) -> str:
        task = int(np.searchsorted(bounds, image, side="right")) - 1
        return f"first copy: {key_of(task, int(positions[image]))}"

    def repeats(number: int) -> Repeats:
        dropped, captions = {}, {}
        for image in range(bounds[number], bounds[number + 1]):
            position = int(positions[image])
            if first[image] != image:
                dropped[position] = (exact_reason, key(first[image]))
            elif near[image] != image:
                dropped[position] = (NEAR_COPY, key(near[image]))
            elif image in merged:
                captions[position] = merged[image]
        return Repeats(dropped, captions)

    return repeats


def _merged_captions(
    output: OutputFolder, stamps: Sequence[str], first: np.ndarray, bounds: np.ndarray
) -> dict[int, list[Caption]]:
    """Return the captions of later copies, in order, by the image that they repeat."""
    merged: dict[int, list[Caption]] = defaultdict(list)
    later = np.flatnonzero(first != np.arange(len(first)))
    owners = np.searchsorted(bounds, later, side="right") - 1
    for number in np.unique(owners).tolist():
        captions = _load(output, number, stamps[number], captions=True).captions or []
        for image in later[owners == number]:
            merged[int(first[image])] += captions[image - bounds[number]]
    return dict(merged)


def _load(output: OutputFolder, number: int, stamp: str, captions: bool = False) -> TaskFingerprints:
    """Read the fingerprints of a task; none where they are missing, broken, or of other input."""
    try:
        found = TaskFingerprints.load(output.fingerprints(number), captions)
        if found.stamp == stamp:
            return found
    except DataError:
        pass
    return TaskFingerprints("", np.zeros(0, np.int64), Fingerprints.of([]))


def _bytes(content: object) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)
