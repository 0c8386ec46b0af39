"""One task, in the process that does it: read, screen, annotate, write whole shards."""

import functools
import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.captions.duplicates import EvaluationImages, Fingerprints, fingerprint
from data_prep.captions.filters import EVALUATION_COPY, NO_CONCEPT, Filters, caption_reason, image_reason, pixels_reason
from data_prep.captions.output import OutputFolder, partial_path, sync, sync_folder, write_json, write_whole
from data_prep.captions.records import Dropped, RawSample, Task, key_of
from data_prep.captions.repeats import Repeats, TaskFingerprints
from data_prep.captions.sources import SourceSettings, read_task
from simzss.concepts.concept import Caption
from simzss.concepts.pipeline import ConceptPipeline
from simzss.data.shards import Sample, decode_image, write_shard

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
        filters: what is left out.
        evaluation: file of the evaluation images' fingerprints, None where they are not looked at.
        samples_per_shard: most images in a shard.
        shard_bytes: a shard ends where its images pass this size.
    """

    output: OutputFolder
    source: SourceSettings
    pipeline: PipelineSettings
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


def screen(task: Task, work: Work, fingerprints: bool = False) -> Iterator[Screened | Dropped]:
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
        found = fingerprint(item.data, image) if fingerprints or work.evaluation is not None else None
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


def fingerprint_task(argument: tuple[Task, Work]) -> None:
    """First pass, where duplicates are looked for: fingerprints of a task's images, and their captions to be merged."""
    task, work = argument
    merging = work.filters.exact_duplicates == "merge"
    positions, prints, captions = [], [], []
    for item in screen(task, work, fingerprints=True):
        if isinstance(item, Screened) and item.fingerprint is not None:
            positions.append(item.position)
            prints.append(item.fingerprint)
            captions.append(list(item.sample.captions) if merging else [])
    found = TaskFingerprints(task.stamp, np.array(positions, np.int64), Fingerprints.of(prints), captions)
    write_whole(work.output.fingerprints(task.number), found.save)


def annotate_task(argument: tuple[Task, Work, Repeats]) -> dict[str, Any]:
    """Second pass, or the only one: a task's shards, whole or not at all, and then its record.

    Returns:
        The record without the list of what was dropped.
    """
    task, work, repeats = argument
    dropped: list[Dropped] = []
    samples = _annotated(task, work, repeats, dropped)
    record: dict[str, Any] = {"task": task.name, "stamp": task.stamp, "repeats": repeats.digest()}
    record["shards"] = _write(task.number, samples, work)
    write_json(work.output.record(task.number), record | {"dropped": [astuple(item) for item in dropped]})
    return record


def _annotated(task: Task, work: Work, repeats: Repeats, dropped: list[Dropped]) -> Iterator[Sample]:
    """Samples with their concepts, in order; what is left out is added to `dropped`."""
    pipeline = load_pipeline(work.pipeline)
    known: dict[str, Caption] = {}  # of this task alone: what a caption is parsed with must not depend on the worker
    for chunk in _chunks(_unrepeated(screen(task, work), repeats, dropped)):
        texts = dict.fromkeys(text for item in chunk for text in item.sample.captions)
        new = [text for text in texts if text not in known]
        known.update(zip(new, pipeline.annotate(new), strict=True))
        for item in chunk:
            captions = tuple(known[text] for text in item.sample.captions)
            name = item.sample.name
            if work.filters.without_concepts or any(caption.concepts for caption in captions):
                suffix = Path(name).suffix.lower().lstrip(".")
                key = key_of(task.number, item.position)
                yield Sample(key, item.sample.data, suffix, captions, name, item.sample.image_id)
            else:
                dropped.append(Dropped("image", name, NO_CONCEPT))


def _unrepeated(items: Iterator[Screened | Dropped], repeats: Repeats, dropped: list[Dropped]) -> Iterator[Screened]:
    """Without the images that repeat another one, with the captions that go to those that stay."""
    for item in items:
        if isinstance(item, Dropped):
            dropped.append(item)
        elif item.position in repeats.dropped:
            dropped.append(Dropped("image", item.sample.name, *repeats.dropped[item.position]))
        elif more := repeats.captions.get(item.position):
            texts = tuple(dict.fromkeys((*item.sample.captions, *more)))
            yield replace(item, sample=replace(item.sample, captions=texts))
        else:
            yield item


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
    info = load_pipeline(work.pipeline).info
    try:
        while (first := next(samples, None)) is not None:
            path = work.output.shard(number, len(written))
            written.append((partial_path(path), path))
            counts = _Counts()
            part = counts.through(_up_to(chain([first], samples), work.samples_per_shard, work.shard_bytes))
            write_shard(written[-1][0], part, info)
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
def load_pipeline(settings: PipelineSettings) -> ConceptPipeline:
    """The pipeline of this process: loading it takes as long as a thousand captions."""
    return ConceptPipeline(settings.name, settings.batch_size, settings.accelerator)


def _evaluation(work: Work) -> EvaluationImages:
    assert work.evaluation is not None
    return _load_evaluation(work.evaluation, work.filters.evaluation_distance)


@functools.lru_cache(maxsize=1)
def _load_evaluation(path: Path, distance: int) -> EvaluationImages:
    return EvaluationImages.load(path, distance)
