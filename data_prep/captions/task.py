"""Do one task in the process that it is given to: filter, annotate, write whole shards."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from simzss.atomic import atomic_write, write_record
from simzss.concepts.concept import Caption
from simzss.data.shards import Sample, Skipped, read_shards
from simzss.errors import DataError

from .duplicates import Fingerprints
from .filters import NO_CONCEPT
from .index import read_dropped, write_dropped
from .records import Dropped, Task, key_of, position_of
from .repeats import Repeats, TaskFingerprints
from .screen import Screened, screen
from .work import Work, load_pipeline
from .write import write_shards

_CHUNK = 256  # images that are held, with their captions, until they are annotated together
_CHUNK_BYTES = 64 << 20


def annotate_task(argument: tuple[Task, Work]) -> dict[str, Any]:
    """Write a task's shards, all or none, then its images' fingerprints where they count, then its done marker.

    Returns:
        What the done marker holds.
    """
    task, work = argument
    dropped: list[Dropped] = []
    kept = _Kept(merging=work.filters.exact_duplicates == "merge")
    shards = write_shards(task.number, _annotated(task, work, dropped, kept), work)
    if work.filters.looks_for_duplicates:
        atomic_write(work.output.fingerprints(task.number), kept.fingerprints(task.stamp).save)
    record = {"task": task.name, "stamp": task.stamp, "repeats": "", "shards": shards}
    return _recorded(task.number, record, dropped, work)


def drop_repeats_task(argument: tuple[int, dict[str, Any], Work, Repeats]) -> dict[str, Any]:
    """Write a finished task's shards again without the images that repeat an earlier one.

    Args:
        argument: number and done marker of the task, the work, and what repeats.

    Returns:
        What the new done marker holds.
    """
    number, record, work, repeats = argument
    dropped = list(read_dropped(work.output.dropped(number)))
    before = work.output.shards(number)
    shards = write_shards(number, _unrepeated(before, record, repeats, dropped), work)
    for path in reversed(before[len(shards) :]):
        path.unlink()
    return _recorded(number, record | {"repeats": repeats.digest(), "shards": shards}, dropped, work)


def _recorded(number: int, record: dict[str, Any], dropped: list[Dropped], work: Work) -> dict[str, Any]:
    """Write the done marker of a task, last of all."""
    write_dropped(work.output.dropped(number), dropped)
    record = record | {"lists": work.output.sums(number)}
    write_record(work.output.record(number), record)
    return record


@dataclass
class _Kept:
    """Collect fingerprints of the images that a task keeps, with their captions if these are merged."""

    merging: bool
    positions: list[int] = field(default_factory=list)
    prints: list[tuple[bytes, int]] = field(default_factory=list)
    captions: list[list[Caption]] = field(default_factory=list)

    def add(self, item: Screened, captions: tuple[Caption, ...]) -> None:
        if item.fingerprint is not None:
            self.positions.append(item.position)
            self.prints.append(item.fingerprint)
            if self.merging:
                self.captions.append(list(captions))

    def fingerprints(self, stamp: str) -> TaskFingerprints:
        positions = np.array(self.positions, np.int64)
        return TaskFingerprints(stamp, positions, Fingerprints.of(self.prints), self.captions if self.merging else None)


def _annotated(task: Task, work: Work, dropped: list[Dropped], kept: _Kept) -> Iterator[Sample]:
    """Yield samples with their concepts, in order; what is left out is added to `dropped`, what is not to `kept`."""
    pipeline = load_pipeline(work.pipeline)
    known: dict[str, Caption] = {}  # of this task alone: what a caption is parsed with must not depend on the worker
    for chunk in _chunks(_screened(task, work, dropped)):
        texts = dict.fromkeys(text for item in chunk for text in item.sample.captions)
        new = [text for text in texts if text not in known]
        known.update(zip(new, pipeline.annotate(new), strict=True))
        for item in chunk:
            captions = tuple(known[text] for text in item.sample.captions)
            name = item.sample.name
            if work.filters.without_concepts or any(caption.concepts for caption in captions):
                kept.add(item, captions)
                suffix = Path(name).suffix.lower().lstrip(".")
                key = key_of(task.number, item.position)
                yield Sample(key, item.sample.data, suffix, captions, name, item.sample.image_id)
            else:
                dropped.append(Dropped("image", name, NO_CONCEPT))


def _screened(task: Task, work: Work, dropped: list[Dropped]) -> Iterator[Screened]:
    for item in screen(task, work):
        if isinstance(item, Dropped):
            dropped.append(item)
        else:
            yield item


def _unrepeated(
    shards: list[Path], record: dict[str, Any], repeats: Repeats, dropped: list[Dropped]
) -> Iterator[Sample]:
    """Yield samples of shards but for the repeated ones; captions that an image gets, and does not have, come last.

    Raises:
        DataError: a shard is not what the done marker says.
    """
    sums = {str(path): entry["sha256"] for path, entry in zip(shards, record["shards"], strict=False)}
    for sample in read_shards(map(str, shards), sums=sums):
        if isinstance(sample, Skipped):
            raise DataError(f"{sample.shard or sample.key}: {sample.reason}; remove it and run again")
        position = position_of(sample.key)
        if position in repeats.dropped:
            dropped.append(Dropped("image", sample.file_name, *repeats.dropped[position]))
        else:
            new: dict[str, Caption] = {}
            for caption in repeats.captions.get(position, ()):
                if all(caption.text != own.text for own in sample.captions):
                    new.setdefault(caption.text, caption)
            yield replace(sample, captions=(*sample.captions, *new.values())) if new else sample


def _chunks(items: Iterator[Screened]) -> Iterator[list[Screened]]:
    """Yield some hundred samples at a time, fewer where the images are big."""
    chunk: list[Screened] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.sample.data)
        if len(chunk) == _CHUNK or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
