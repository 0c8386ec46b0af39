"""Shards of images with annotated captions: one format, written and read here. The only webdataset import.

A sample is `<key>.<image suffix>` with the original image bytes and `<key>.json`:

    {"format_version": 1, "pipeline": {"name", "version", "spacy"}, "file_name": …, "image_id": …,
     "captions": [{"text": …, "concepts": [{"text", "lemma", "start", "end"}]}]}

Nothing in a shard is ever unpickled: members are read as bytes and decoded here.
"""

import glob
import io
import json
import os.path
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
import webdataset as wds
from PIL import Image, UnidentifiedImageError
from webdataset.tariterators import group_by_keys, tar_file_expander

from simzss.concepts.concept import Caption
from simzss.data.transforms import to_rgb
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


def expand_shards(pattern: str | Sequence[str], key: str = "data.shards") -> list[str]:
    """Shard paths of a path, a glob, a brace pattern, or a list of them; sorted within each.

    Args:
        pattern: a path that exists is taken literally, whatever characters it has.
        key: of the program's settings, for the messages.

    Raises:
        InputError: a pattern that matches nothing, or with unbalanced braces.
    """
    paths: list[str] = []
    for entry in [pattern] if isinstance(pattern, str) else list(pattern):
        try:
            parts = [entry] if _is_file(entry) else list(braceexpand.braceexpand(entry))
        except ValueError as error:
            raise InputError(f"{key}={entry} has unbalanced braces") from error
        for part in parts:
            # Absolute patterns, which Path.glob refuses.
            found = [part] if _is_file(part) else sorted(glob.glob(part, recursive=True))  # noqa: PTH207
            if not found:
                raise InputError(f"{key}={part} matches no file")
            paths.extend(found)
    return paths


def _is_file(text: str) -> bool:
    """Whether a path or pattern is the path of a file as it stands."""
    return os.path.isfile(text)  # noqa: PTH113 - Path.is_file raises on text longer than a file name, as patterns may be


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
    records = _read_tars(urls)
    if shuffle:
        # What is skipped goes through the buffer as well: broken tars alone would never fill it, and never be reported.
        records = wds.shuffle(shuffle, initial=shuffle, rng=random.Random(seed))(records)
    for record in records:
        yield record if isinstance(record, Skipped) else parse_sample(record)


def read_members(urls: Iterable[str], on_broken: Callable[[Skipped], None]) -> Iterator[dict[str, Any]]:
    """The files of each key of the tars as bytes by suffix, with `__key__`; a tar that breaks off is reported."""
    for record in _read_tars(urls):
        if isinstance(record, Skipped):
            on_broken(record)
        else:
            yield record


def _read_tars(urls: Iterable[str]) -> Iterator[dict[str, Any] | Skipped]:
    for url in urls:
        yield from _read_tar(url)


def _read_tar(url: str) -> Iterator[dict[str, Any] | Skipped]:
    """The files of each key of one tar, and what is wrong with the tar under its name.

    A tar that breaks off ends with the last sample that another one follows: the one after it may be half there.
    """
    name = Path(url).name
    repeated: list[Skipped] = []

    def note_repeated(error: Exception) -> bool:
        repeated.append(Skipped(name, _tar_reason(error)))
        return True  # go on without this file

    empty = True
    try:
        # Opened here: webdataset takes a name with a colon for a URL, and runs what follows "pipe:".
        with Path(url).open("rb") as stream:
            for raw in group_by_keys(tar_file_expander([{"url": url, "stream": stream}]), handler=note_repeated):
                empty = False
                yield raw
    except Exception as error:
        # tarfile and the decompressors behind it raise a dozen types on broken files.
        yield Skipped(name, f"unreadable tar: {_tar_reason(error)}")
    else:
        if empty:
            yield Skipped(name, "no sample in the tar")
    yield from repeated


def _tar_reason(error: Exception) -> str:
    """What went wrong, without the path and file object that webdataset adds to the arguments of an error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = error.args[0] if error.args else None
    return first.split(" @ ")[0] if isinstance(first, str) else type(error).__name__


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
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
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
        return to_rgb(Image.open(io.BytesIO(data)))
    except UnidentifiedImageError as error:
        # Its own text holds the address of the BytesIO, different in every run.
        raise ValueError("unreadable image: no known format") from error
    except Exception as error:
        # Pillow raises a dozen types on broken files (OSError, SyntaxError, struct.error, DecompressionBombError …).
        raise ValueError(f"unreadable image: {error}") from error


def count_samples(urls: Sequence[str], progress: Callable[[str], None] | None = None) -> int:
    """Number of samples: from the `index.json` beside the shards where it lists them, else from the tar headers."""
    counts: dict[str, int] = {}
    for folder in {Path(url).parent for url in urls}:
        counts |= _indexed_counts(folder)
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
        except (tarfile.TarError, OSError, EOFError):
            continue  # the reader reports it; here it only holds no sample
    return found


def _indexed_counts(folder: Path) -> dict[str, int]:
    """Samples by shard path, as the folder's `index.json` lists them; empty without one, or with one not of ours."""
    try:
        listed = json.loads((folder / "index.json").read_text(encoding="utf-8"))["shards"]
        return {str(folder / shard["name"]): int(shard["samples"]) for shard in listed}
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return {}
