"""Write the shards of a task, all of them or none."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from simzss.atomic import partial_path, sync, sync_folder
from simzss.data.shards import Sample, write_shard

from .work import Work


def write_shards(number: int, samples: Iterator[Sample], work: Work) -> list[dict[str, Any]]:
    """Write the shards of a task under other names; once all are whole they replace what is there.

    Returns:
        Name, counts, size and SHA-256 of each.
    """
    most, most_bytes = work.settings.samples_per_shard, round(work.settings.shard_megabytes * 1e6)
    written: list[tuple[Path, Path]] = []
    described = []
    try:
        while (first := next(samples, None)) is not None:
            path = work.output.shard(number, len(written))
            written.append((partial_path(path), path))
            counts = _Counts()
            part = counts.through(_up_to(chain([first], samples), most, most_bytes))
            write_shard(written[-1][0], part, work.pipeline_info)
            described.append({"name": path.name} | asdict(counts) | _sealed(written[-1][0]))
        for partial, path in written:
            partial.replace(path)
    except BaseException:
        for partial, _ in written:
            partial.unlink(missing_ok=True)
        raise
    sync_folder(work.output.path)
    return described


def _up_to(samples: Iterator[Sample], count: int, size: int) -> Iterator[Sample]:
    """Yield the next samples: `count` of them, or fewer where their images pass `size` bytes."""
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


def _sealed(path: Path) -> dict[str, Any]:
    """Flush a file to the disk and return its size and SHA-256."""
    with path.open("r+b") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        sync(stream)
        return {"bytes": path.stat().st_size, "sha256": digest}
