"""Write the index of a run and the list of what was left out, from the done markers of its tasks."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from simzss.atomic import atomic_write, write_json

from .output import OutputFolder
from .records import Dropped, Source

INDEX_VERSION = 2


@dataclass
class Summary:
    """Shards of a run, and counts of what it left out.

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


def write_index(
    output: OutputFolder, source: Source, failed: dict[int, tuple[str, str]], about: dict[str, Any]
) -> Summary:
    """Write `skipped.jsonl` and `index.json` from the done markers; memory holds no list of what was left out.

    Args:
        output: the folder.
        source: says how many tasks there are, and what was dropped before there was one for it.
        failed: name of tasks without a done marker, and why they have none, by number.
        about: more for the index: the pipeline, the evaluation sets that were looked for.
    """
    summary = Summary()

    def write(stream: BinaryIO) -> None:
        for item in _dropped(output, source, failed, summary):
            summary.count(item)
            stream.write(_line(item))

    atomic_write(output.skipped, write)
    if summary.first is None:
        output.skipped.unlink()
    index = {
        "format_version": INDEX_VERSION,
        "complete": not summary.failed,
        **about,
        "samples": summary.total("samples"),
        "captions": summary.total("captions"),
        "concepts": summary.total("concepts"),
        "left_out": {"images": dict(summary.images.most_common()), "captions": dict(summary.captions.most_common())},
        "failed": summary.failed,
        "shards": summary.shards,
    }
    write_json(output.index, index)
    return summary


def write_dropped(path: Path, items: list[Dropped]) -> None:
    """Write a list of what was left out, a JSON object a line; no file for none."""
    if items:
        atomic_write(path, lambda stream: stream.writelines(map(_line, items)))
    else:
        path.unlink(missing_ok=True)


def read_dropped(path: Path) -> Iterator[Dropped]:
    """Read what `write_dropped` wrote."""
    if path.exists():
        with path.open(encoding="utf-8") as stream:
            yield from (Dropped(**json.loads(line)) for line in stream)


def _dropped(
    output: OutputFolder, source: Source, failed: dict[int, tuple[str, str]], summary: Summary
) -> Iterator[Dropped]:
    """Yield what was dropped, in the order of the tasks, and note their shards or failures in `summary`."""
    yield from source.dropped()
    for number in range(len(source)):
        record = output.finished(number)
        if record is not None:
            summary.shards += record["shards"]
            yield from read_dropped(output.dropped(number))
        else:
            name, reason = failed.get(number, (f"task {number}", "its shards are gone"))
            summary.failed[name] = reason


def _line(item: Dropped) -> bytes:
    text = json.dumps(asdict(item), ensure_ascii=False)
    # Half a surrogate pair, as file names may hold, has no bytes: it stays the JSON escape that it was.
    return f"{text}\n".encode(errors="backslashreplace")
