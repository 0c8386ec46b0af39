"""The `index.json` beside shards: what each of them holds and must be, and what is missing."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from simzss.errors import DataError


class WorkerError(DataError):
    """An error that is raised in a loader's worker as well.

    The loader raises it anew, with the whole traceback as the message. Only the end of that is kept: the worker's own
    message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[-1].strip())


class DamagedShardError(WorkerError):
    """A shard that is not what its index says."""

    @classmethod
    def of(cls, url: str, found: str, others: int = 0) -> Self:
        """Build the error about a shard, and a number of others of which the same is true."""
        more = f", and so do {others} more" if others else ""
        return cls(
            f"{url} differs from its index.json ({found}){more}: it is damaged or was rewritten; copy it again, or "
            "remove it and run simzss prep captions again (without index.json, shards are read as they are)"
        )


@dataclass(frozen=True)
class ListedShard:
    """What an index says of a shard; None where it does not."""

    samples: int
    bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class ShardIndex:
    """Content of the `index.json` of one folder.

    Attributes:
        folder: as the paths of its shards name it.
        shards: by path.
        failed: number of tasks that `data_prep.captions` could not do, whose samples are missing; None when complete.
    """

    folder: Path
    shards: dict[Path, ListedShard]
    failed: int | None


def read_indexes(urls: Iterable[str]) -> list[ShardIndex]:
    """Read the indexes beside the shards, by folder; none for a folder without one, or with one not of ours."""
    found = (_index_of(folder) for folder in sorted({Path(url).parent for url in urls}))
    return [index for index in found if index is not None]


def find_listed(url: str) -> ListedShard | None:
    """Return what the index beside a shard says of it; None without one."""
    index = _index_of(Path(url).parent)
    return None if index is None else index.shards.get(Path(url))


def require_sizes(urls: Iterable[str]) -> None:
    """Compare the sizes of shards with those that the indexes beside them list: at once, before any of them is read.

    Raises:
        DamagedShardError: names the first that differs, and counts the others.
    """
    wrong = []
    for url in dict.fromkeys(urls):
        listed = find_listed(url)
        size = _size(url)
        if listed is not None and None not in (listed.bytes, size) and listed.bytes != size:
            wrong.append((url, f"{size} bytes in place of {listed.bytes}"))
    if wrong:
        raise DamagedShardError.of(*wrong[0], others=len(wrong) - 1)


def unfinished(indexes: Iterable[ShardIndex]) -> str | None:
    """Return one line that names the folders in which samples of failed tasks are missing; None without."""
    folders = [f"{index.folder} (failed tasks: {index.failed})" for index in indexes if index.failed is not None]
    if not folders:
        return None
    return (
        f"incomplete shards: {', '.join(folders)}; their index.json says what failed and why, "
        "data_prep.captions run again completes them"
    )


def _size(url: str) -> int | None:
    try:
        return Path(url).stat().st_size
    except OSError:
        return None


def _index_of(folder: Path) -> ShardIndex | None:
    try:
        state = (folder / "index.json").stat()
    except OSError:
        return None
    return _read_index(folder, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)  # every shard that is read asks for it
def _read_index(folder: Path, _changed: int, _size: int) -> ShardIndex | None:
    try:
        record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        shards = {folder / shard["name"]: _listed(shard) for shard in record["shards"]}
        return ShardIndex(folder, shards, len(record["failed"]) if record.get("complete") is False else None)
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _listed(shard: dict[str, Any]) -> ListedShard:
    size, sha256 = shard.get("bytes"), shard.get("sha256")
    return ListedShard(
        int(shard["samples"]), size if isinstance(size, int) else None, sha256 if isinstance(sha256, str) else None
    )
