"""One task, in the process that does it: read, screen, annotate, write whole shards."""

import functools
import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from data_prep.captions.duplicates import Fingerprints, fingerprint
from data_prep.captions.evaluation_photos import EvaluationImages
from data_prep.captions.filters import EVALUATION_COPY, NO_CONCEPT, Filters, caption_reason, image_reason, pixels_reason
from data_prep.captions.index import read_dropped, write_dropped
from data_prep.captions.output import OutputFolder
from data_prep.captions.records import Dropped, RawSample, Task, key_of, position_of
from data_prep.captions.repeats import Repeats, TaskFingerprints
from data_prep.captions.sources import SourceSettings, read_task
from simzss.atomic import partial_path, sync, sync_folder, write_json, write_whole
from simzss.concepts.concept import Caption
from simzss.data.shards import Sample, Skipped, decode_image, read_shards, write_shard
from simzss.errors import InputError

if TYPE_CHECKING:
    from simzss.concepts.pipeline import ConceptPipeline

_CHUNK = 256  # images that are held, with their captions, until they are annotated together
_CHUNK_BYTES = 64 << 20
_SHOWN = 200  # characters of a caption that a list of what was dropped shows


@dataclass(frozen=True)
class PipelineSettings:
    """The spaCy pipeline of a worker: name or folder, captions at once, and whether it runs on an accelerator."""

    name: str
    batch_size: int
    accelerator: bool = False


@dataclass(frozen=True)
class Work:
    """What a worker needs for any task.

    Attributes:
        output: folder of the shards.
        source: how the input is read.
        pipeline: that finds the concepts.
        pipeline_info: its name and versions, as every sample has them.
        filters: what is left out.
        evaluation: file of the evaluation images' fingerprints, None where they are not looked at.
        samples_per_shard: most images in a shard.
        shard_bytes: a shard ends where its images pass this size.
    """

    output: OutputFolder
    source: SourceSettings
    pipeline: PipelineSettings
    pipeline_info: dict[str, str]
    filters: Filters
    evaluation: Path | None
    samples_per_shard: int
    shard_bytes: int


@dataclass(frozen=True)
class Screened:
    """A sample that passed the filters.

    Attributes:
        position: in its task; images that were dropped before it count as well.
        sample: with the captions that passed.
        fingerprint: digest of the file and perceptual hash, where they were asked for.
    """

    position: int
    sample: RawSample
    fingerprint: tuple[bytes, int] | None = None


def screen(task: Task, work: Work) -> Iterator[Screened | Dropped]:
    """Samples of a task whose image decodes and which the filters keep.

    A broken image is reported now rather than in every epoch.
    """
    position = -1
    for item in read_task(task, work.source):
        if isinstance(item, Dropped):
            yield item
            continue
        position += 1
        image = _decoded(item, work)
        if isinstance(image, Dropped):
            yield image
            continue
        needed = work.filters.looks_for_duplicates or work.evaluation is not None
        found = fingerprint(item.data, image) if needed else None
        if found is not None and work.evaluation is not None and (twin := _evaluation(work).match(found[1])):
            yield Dropped("image", item.name, EVALUATION_COPY, twin)
            continue
        kept = []
        for text in item.captions:
            reason = caption_reason(text, work.filters)
            if reason is None:
                kept.append(text)
            else:
                yield Dropped("caption", item.name, reason, text[:_SHOWN])
        if kept:
            yield Screened(position, replace(item, captions=tuple(kept)), found)
        else:
            yield Dropped("image", item.name, "no caption left")


def _decoded(sample: RawSample, work: Work) -> Image.Image | Dropped:
    """The image in RGB, or why it is left out."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(sample.data)) as header:
            reason = image_reason(header.size, work.filters)  # before its pixels are made: it may be a bomb
    except Image.DecompressionBombError:  # so big that Pillow does not give its size
        reason = pixels_reason(work.filters)
    except Exception:  # as many types as there are formats; `decode_image` has the words for them
        reason = None
    if reason is not None:
        return Dropped("image", sample.name, reason)
    try:
        return decode_image(sample.data)
    except ValueError as error:
        return Dropped("image", sample.name, "unreadable image", str(error).removeprefix("unreadable image: "))


def describe_pipeline(settings: PipelineSettings) -> dict[str, str]:
    """Name and versions of the pipeline where tasks are done, which has it ready then.

    Raises:
        InputError: it cannot be used.
    """
    return load_pipeline(settings).info


def annotate_task(argument: tuple[Task, Work]) -> dict[str, Any]:
    """A task's shards, whole or not at all, then the fingerprints of its images where they count, then its record.

    Returns:
        The record.
    """
    task, work = argument
    dropped: list[Dropped] = []
    kept = _Kept(merging=work.filters.exact_duplicates == "merge")
    shards = _write(task.number, _annotated(task, work, dropped, kept), work)
    if work.filters.looks_for_duplicates:
        write_whole(work.output.fingerprints(task.number), kept.fingerprints(task.stamp).save)
    record = {"task": task.name, "stamp": task.stamp, "repeats": "", "shards": shards}
    return _recorded(task.number, record, dropped, work)


def drop_repeats_task(argument: tuple[int, dict[str, Any], Work, Repeats]) -> dict[str, Any]:
    """Write a finished task's shards again without the images that repeat an earlier one.

    Args:
        argument: number and record of the task, the work, and what repeats.

    Returns:
        The new record.
    """
    number, record, work, repeats = argument
    dropped = list(read_dropped(work.output.dropped(number)))
    before = work.output.shards(number)
    shards = _write(number, _unrepeated(before, repeats, dropped), work)
    for path in reversed(before[len(shards) :]):
        path.unlink()
    return _recorded(number, record | {"repeats": repeats.digest(), "shards": shards}, dropped, work)


def _recorded(number: int, record: dict[str, Any], dropped: list[Dropped], work: Work) -> dict[str, Any]:
    """Write what vouches for the shards of a task, last of all."""
    write_dropped(work.output.dropped(number), dropped)
    write_json(work.output.record(number), record)
    return record


@dataclass
class _Kept:
    """Fingerprints of the images that a task keeps, as they come by, with their captions if these are merged."""

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
    """Samples with their concepts, in order; what is left out is added to `dropped`, what is not to `kept`."""
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


def _unrepeated(shards: list[Path], repeats: Repeats, dropped: list[Dropped]) -> Iterator[Sample]:
    """Samples of shards but for the repeated ones; captions that an image gets, and does not have, come last."""
    for sample in read_shards(map(str, shards)):
        if isinstance(sample, Skipped):
            raise InputError(f"{sample.shard or sample.key}: {sample.reason}; remove it and run again")
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
    """Some hundred samples at a time, fewer where the images are big."""
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


def _write(number: int, samples: Iterator[Sample], work: Work) -> list[dict[str, Any]]:
    """Write the shards of a task under other names; once all are whole they take the place of what is there."""
    written: list[tuple[Path, Path]] = []
    described = []
    try:
        while (first := next(samples, None)) is not None:
            path = work.output.shard(number, len(written))
            written.append((partial_path(path), path))
            counts = _Counts()
            part = counts.through(_up_to(chain([first], samples), work.samples_per_shard, work.shard_bytes))
            write_shard(written[-1][0], part, work.pipeline_info)
            described.append({"name": path.name} | counts.as_dict() | _sealed(written[-1][0]))
        for partial, path in written:
            partial.replace(path)
    except BaseException:
        for partial, _ in written:
            partial.unlink(missing_ok=True)
        raise
    sync_folder(work.output.path)
    return described


def _up_to(samples: Iterator[Sample], count: int, size: int) -> Iterator[Sample]:
    """The next samples: `count` of them, or fewer where their images pass `size` bytes."""
    for sample in islice(samples, count):
        yield sample
        size -= len(sample.image)
        if size <= 0:
            return


@dataclass
class _Counts:
    samples: int = 0
    captions: int = 0
    concepts: int = 0

    def through(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            self.samples += 1
            self.captions += len(sample.captions)
            self.concepts += sum(len(caption.concepts) for caption in sample.captions)
            yield sample

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def _sealed(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file that is put on the disk."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        sync(stream)
        return {"bytes": path.stat().st_size, "sha256": digest}


@functools.lru_cache(maxsize=1)
def load_pipeline(settings: PipelineSettings) -> "ConceptPipeline":
    """The pipeline of this process: loading it takes as long as a thousand captions."""
    from simzss.concepts.pipeline import ConceptPipeline  # spaCy, which the driver does without

    return ConceptPipeline(settings.name, settings.batch_size, settings.accelerator)


def _evaluation(work: Work) -> EvaluationImages:
    assert work.evaluation is not None
    return _load_evaluation(work.evaluation, work.filters.evaluation_distance)


@functools.lru_cache(maxsize=1)
def _load_evaluation(path: Path, distance: int) -> EvaluationImages:
    return EvaluationImages.load(path, distance)
