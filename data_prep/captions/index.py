"""The index of a finished run and the list of what was left out, made from the records of its tasks."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from data_prep.captions.output import OutputFolder, write_json, write_whole
from data_prep.captions.records import Dropped, Source

INDEX_VERSION = 2


@dataclass
class Summary:
    """What a run wrote and what it left out.

    Attributes:
        shards: their descriptions, in order.
        images: number of images left out, by reason.
        captions: number of captions left out, by reason; those that went with their image are not counted.
        failed: name of each task that could not be done, and why.
        first: the first thing that was left out.
    """

    shards: list[dict[str, Any]] = field(default_factory=list)
    images: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    first: Dropped | None = None

    def total(self, key: str) -> int:
        """Sum of `samples`, `captions` or `concepts` over the shards."""
        return sum(shard[key] for shard in self.shards)

    def count(self, item: Dropped) -> None:
        """Count one thing that was left out."""
        self.first = self.first or item
        (self.images if item.kind == "image" else self.captions)[item.reason] += 1


def write_index(output: OutputFolder, source: Source, failed: dict[str, str], pipeline: dict[str, str]) -> Summary:
    """Write `skipped.jsonl` and `index.json` from the records of the tasks; memory holds no list of what was left out.

    Args:
        output: the folder.
        source: gives the tasks, and what was dropped before there was one for it.
        failed: why tasks have no record, by their name; those that have none for no known reason are added.
        pipeline: name and versions of the pipeline.
    """
    summary = Summary(failed=failed)

    def write(stream: BinaryIO) -> None:
        for item in _dropped(output, source, summary):
            summary.count(item)
            line = {"kind": item.kind, "name": item.name, "reason": item.reason, "detail": item.detail}
            text = json.dumps(line, ensure_ascii=False) + "\n"
            stream.write(text.encode(errors="backslashreplace"))

    write_whole(output.skipped, write)
    if summary.first is None:
        output.skipped.unlink()
    index = {
        "format_version": INDEX_VERSION,
        "complete": not failed,
        "pipeline": pipeline,
        "samples": summary.total("samples"),
        "captions": summary.total("captions"),
        "concepts": summary.total("concepts"),
        "left_out": {"images": dict(summary.images.most_common()), "captions": dict(summary.captions.most_common())},
        "failed": failed,
        "shards": summary.shards,
    }
    write_json(output.index, index)
    return summary


def _dropped(output: OutputFolder, source: Source, summary: Summary) -> Iterator[Dropped]:
    """What was dropped, in order of the tasks, whose shards are noted on the way."""
    yield from source.dropped()
    for task in source.tasks():
        record = output.finished(task.number)
        if record is not None:
            summary.shards += record["shards"]
            yield from (Dropped(*fields) for fields in record["dropped"])
        elif task.name not in summary.failed:
            summary.failed[task.name] = "its shards are gone"
