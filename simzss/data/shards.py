"""Shards of images with annotated captions: one format, written and read here. The only webdataset import.

A sample is `<key>.<image suffix>` with the original image bytes and `<key>.json`:

    {"format_version": 1, "pipeline": {"name", "version", "spacy"}, "file_name": …, "image_id": …,
     "captions": [{"text": …, "concepts": [{"text", "lemma", "start", "end"}]}]}

Nothing in a shard is ever unpickled: members are read as bytes and decoded here.
"""

import glob
import json
import os.path
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import braceexpand
import webdataset as wds

from simzss.concepts.concept import Caption
from simzss.data.index import find_listed
from simzss.data.tars import UNREADABLE, Skipped, count_headers, read_tar
from simzss.errors import DataError

FORMAT_VERSION = 1
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp")


@dataclass(frozen=True)
class Sample:
    """One image and all its captions; `image` holds the file's bytes as they were, `shard` is where it was read."""

    key: str
    image: bytes
    suffix: str
    captions: tuple[Caption, ...]
    file_name: str = ""
    image_id: int | str | None = None
    shard: str = field(default="", compare=False)


def summarise_skipped(skipped: Iterable[Skipped], examples: int = 3) -> str:
    """Return one line: the number of skipped samples, by reason, and the keys of the first."""
    skipped = list(skipped)
    reasons = Counter(record.reason.split(":")[0] for record in skipped)
    counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    names = ", ".join(record.key for record in skipped[:examples])
    broken = any(record.reason.startswith(UNREADABLE) for record in skipped)
    lost = "; whatever follows the break in an unreadable tar is lost too, and not counted" if broken else ""
    return f"skipped {len(skipped)} samples ({counts}); first: {names}{lost}"


def write_shard(path: Path, samples: Iterable[Sample], pipeline: dict[str, str]) -> None:
    """Write one tar; equal samples give equal bytes (no time, no owner)."""
    # Opened here: webdataset takes a name with a colon for a URL, and runs what follows "pipe:".
    with path.open("wb") as stream, wds.TarWriter(stream, mtime=0, user="", group="") as sink:
        for sample in samples:
            record = {
                "format_version": FORMAT_VERSION,
                "pipeline": pipeline,
                "file_name": sample.file_name,
                "image_id": sample.image_id,
                "captions": [caption.to_json() for caption in sample.captions],
            }
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            # Half a surrogate pair, as file names may hold, has no bytes: it stays the JSON escape that it was.
            data = text.encode(errors="backslashreplace")
            sink.write({"__key__": sample.key, sample.suffix: sample.image, "json": data})


def expand_shards(pattern: str | Sequence[str], key: str = "data.shards") -> list[str]:
    """Return the shard paths of a path, a glob, a brace pattern, or a list of them; sorted within each.

    Args:
        pattern: a path that exists is taken literally, whatever characters it has.
        key: of the program's settings, for the messages.

    Raises:
        DataError: a pattern that matches nothing, or with unbalanced braces.
    """
    paths: list[str] = []
    for entry in [pattern] if isinstance(pattern, str) else list(pattern):
        try:
            parts = [entry] if _is_file(entry) else list(braceexpand.braceexpand(entry))
        except ValueError as error:
            raise DataError(f"{key}={entry} has unbalanced braces") from error
        for part in parts:
            # Absolute patterns, which Path.glob refuses.
            found = [part] if _is_file(part) else sorted(glob.glob(part, recursive=True))  # noqa: PTH207
            if not found:
                raise DataError(f"{key}={part} matches no file")
            paths.extend(found)
    return paths


def _is_file(text: str) -> bool:
    """Tell whether a path or pattern is the path of a file as it stands."""
    return os.path.isfile(text)  # noqa: PTH113 - Path.is_file raises on text longer than a file name, as patterns may be


def shard_order(urls: Sequence[str], seed: int, epoch: int) -> Iterator[list[str]]:
    """Yield endless passes over the shards, each a fresh permutation of them."""
    passes = 0
    while True:
        order = list(urls)
        # String seeds are hashed by Random in a way that is stable across processes and versions.
        random.Random(f"{seed}/{epoch}/{passes}").shuffle(order)
        yield order
        passes += 1


def read_shards(
    urls: Iterable[str], shuffle: int = 0, seed: str = "", sums: Mapping[str, str] | None = None
) -> Iterator[Sample | Skipped]:
    """Yield the samples of the shards in order, or through a seeded shuffle buffer of `shuffle` samples.

    A sample or a tar that cannot be read is passed on as `Skipped`, never dropped.

    Args:
        urls: paths of shards.
        shuffle: samples in the buffer.
        seed: of the buffer.
        sums: SHA-256 that shards must have, by path; default those that the `index.json` beside each lists.

    Raises:
        DamagedShardError: a shard has another SHA-256; after its last sample.
    """
    records = _read_tars(urls, _listed_sum if sums is None else sums.get)
    if shuffle:
        # What is skipped goes through the buffer as well: broken tars alone would never fill it, and never be reported.
        records = wds.shuffle(shuffle, initial=shuffle, rng=random.Random(seed))(records)
    for record in records:
        yield record if isinstance(record, Skipped) else parse_sample(record)


def read_members(urls: Iterable[str], on_skipped: Callable[[Skipped], None]) -> Iterator[dict[str, Any]]:
    """Yield the files of each key of the tars as bytes by suffix, with `__key__`; report what is left out of them."""
    for record in _read_tars(urls, lambda url: None):
        if isinstance(record, Skipped):
            on_skipped(record)
        else:
            yield record


def _read_tars(urls: Iterable[str], sum_of: Callable[[str], str | None]) -> Iterator[dict[str, Any] | Skipped]:
    for url in urls:
        yield from read_tar(url, sum_of(url))


def _listed_sum(url: str) -> str | None:
    listed = find_listed(url)
    return None if listed is None else listed.sha256


def parse_sample(raw: dict[str, Any]) -> Sample | Skipped:
    """Parse the members of one key; a sample of another shape becomes `Skipped`."""
    key, shard = str(raw.get("__key__", "?")), str(raw.get("__url__", ""))
    suffix = next((s for s in IMAGE_SUFFIXES if s in raw), None)
    if suffix is None:
        return Skipped(key, "no image in the sample", shard)
    try:
        record = json.loads(raw["json"])
        if record["format_version"] != FORMAT_VERSION:
            return Skipped(key, f"shard format {record['format_version']}, this program reads {FORMAT_VERSION}", shard)
        captions = tuple(Caption.from_json(caption) for caption in record["captions"])
        "".join(caption.text for caption in captions).encode()  # half a surrogate pair, which no tokenizer takes
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        return Skipped(key, f"bad annotation: {type(error).__name__}: {error}", shard)
    if not captions:
        return Skipped(key, "no caption", shard)
    return Sample(key, raw[suffix], suffix, captions, str(record.get("file_name", "")), record.get("image_id"), shard)


def count_samples(urls: Iterable[str]) -> int:
    """Count samples: as the indexes beside the shards list them, else from the tar headers.

    An estimate: an index may be stale, and a sample or the rest of a tar may turn out unreadable.
    """
    listed = ((url, find_listed(url)) for url in urls)
    return sum(count_headers(url) if found is None else found.samples for url, found in listed)
