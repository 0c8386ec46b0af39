"""Shards of images with annotated captions: one format, written and read here. The only webdataset import.

A sample is `<key>.<image suffix>` with the original image bytes and `<key>.json`:

    {"format_version": 1, "pipeline": {"name", "version", "spacy"}, "file_name": …, "image_id": …,
     "captions": [{"text": …, "concepts": [{"text", "lemma", "start", "end"}]}]}

Nothing in a shard is ever unpickled: members are read as bytes and decoded here.
"""

import glob
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
import webdataset as wds
from PIL import Image

from simzss.concepts.concept import Caption
from simzss.errors import InputError

FORMAT_VERSION = 1
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp")


@dataclass(frozen=True)
class Sample:
    """One image and all its captions; `image` holds the file's bytes as they were."""

    key: str
    image: bytes
    suffix: str
    captions: tuple[Caption, ...]
    file_name: str = ""
    image_id: int | str | None = None


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be used, and why."""

    key: str
    reason: str


def write_shard(path: Path, samples: Iterable[Sample], pipeline: dict[str, str]) -> None:
    """Write one tar; equal samples give equal bytes (no time, no owner)."""
    with wds.TarWriter(str(path), mtime=0, user="", group="") as sink:
        for sample in samples:
            record = {
                "format_version": FORMAT_VERSION,
                "pipeline": pipeline,
                "file_name": sample.file_name,
                "image_id": sample.image_id,
                "captions": [caption.to_json() for caption in sample.captions],
            }
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            sink.write({"__key__": sample.key, sample.suffix: sample.image, "json": text.encode()})


def expand_shards(pattern: str | Sequence[str]) -> list[str]:
    """Shard paths of a glob, a brace pattern, or a list of them; sorted within each.

    Raises:
        InputError: a pattern that matches nothing.
    """
    paths: list[str] = []
    for entry in [pattern] if isinstance(pattern, str) else list(pattern):
        for part in braceexpand.braceexpand(entry):
            found = sorted(glob.glob(part, recursive=True))  # noqa: PTH207 - absolute patterns, which Path.glob refuses
            if not found:
                raise InputError(f"data.shards={part} matches no file")
            paths.extend(found)
    return paths


def shard_order(urls: Sequence[str], seed: int, epoch: int, consumer: int, consumers: int) -> Iterator[str]:
    """Endless stream of shards for one of `consumers` readers: every pass is a fresh permutation, dealt out in turn.

    With fewer shards than readers each reader goes through all shards in an order of its own.
    """
    passes = 0
    while True:
        # String seeds are hashed by Random in a way that is stable across processes and versions.
        alone = len(urls) < consumers
        rng = random.Random(f"{seed}/{epoch}/{passes}/{consumer if alone else 'all'}")
        order = list(urls)
        rng.shuffle(order)
        yield from order if alone else order[consumer::consumers]
        passes += 1


def read_shards(urls: Iterable[str], shuffle: int = 0, seed: str = "") -> Iterator[Sample | Skipped]:
    """Samples of the shards in order, or through a seeded shuffle buffer of `shuffle` samples.

    A sample or a tar that cannot be read is passed on as `Skipped`, never dropped.
    """
    broken: list[Skipped] = []
    stages: list[Any] = [wds.shuffle(shuffle, initial=shuffle, rng=random.Random(seed))] if shuffle else []
    for raw in read_members(urls, broken.append, stages):
        yield from broken
        broken.clear()
        yield parse_sample(raw)
    yield from broken


def read_members(
    urls: Iterable[str], on_broken: Callable[[Skipped], None], stages: Sequence[Any] = ()
) -> Iterator[dict[str, Any]]:
    """The files of each key of the tars as bytes by suffix, with `__key__`; a tar that breaks off is reported."""

    def note(error: Exception) -> bool:
        arguments = [str(argument) for argument in error.args]
        name = next((Path(text).name for text in reversed(arguments) if text.endswith(".tar")), "?")
        on_broken(Skipped(name, f"unreadable tar: {arguments[0] if arguments else type(error).__name__}"))
        return True

    def sources() -> Iterator[dict[str, str]]:
        for url in urls:
            yield {"url": url}

    yield from wds.DataPipeline(sources, wds.tarfile_to_samples(handler=note), *stages)


def parse_sample(raw: dict[str, Any]) -> Sample | Skipped:
    """Turn the members of one key into a sample; a wrong shape becomes `Skipped`."""
    key = str(raw.get("__key__", "?"))
    suffix = next((s for s in IMAGE_SUFFIXES if s in raw), None)
    if suffix is None:
        return Skipped(key, "no image in the sample")
    try:
        record = json.loads(raw["json"])
        if record["format_version"] != FORMAT_VERSION:
            return Skipped(key, f"shard format {record['format_version']}, this program reads {FORMAT_VERSION}")
        captions = tuple(Caption.from_json(caption) for caption in record["captions"])
    except (KeyError, TypeError, ValueError) as error:
        return Skipped(key, f"bad annotation: {type(error).__name__}: {error}")
    if not captions:
        return Skipped(key, "no caption")
    return Sample(key, raw[suffix], suffix, captions, str(record.get("file_name", "")), record.get("image_id"))


def decode_image(data: bytes) -> Image.Image:
    """Image bytes as RGB.

    Raises:
        ValueError: not an image, or a broken one.
    """
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as error:
        # Pillow raises a dozen types on broken files (OSError, SyntaxError, struct.error, DecompressionBombError …).
        raise ValueError(f"unreadable image: {error}") from error


def count_samples(urls: Sequence[str], progress: Callable[[str], None] | None = None) -> int:
    """Number of samples: from the `index.json` beside the shards where it lists them, else from the tar headers."""
    counts: dict[str, int] = {}
    for folder in {Path(url).parent for url in urls}:
        index = folder / "index.json"
        if index.is_file():
            listed = json.loads(index.read_text(encoding="utf-8")).get("shards", [])
            counts |= {str(folder / shard["name"]): int(shard["samples"]) for shard in listed}
    found = 0
    for url in urls:
        if url in counts:
            found += counts[url]
            continue
        if progress is not None:
            progress(f"counting samples of {url}")
        try:
            with tarfile.open(url) as archive:
                found += sum(name.endswith(".json") for name in archive.getnames())
        except (tarfile.TarError, OSError):
            continue  # the reader reports it; here it only holds no sample
    return found
