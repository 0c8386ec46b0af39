"""Resuming: what earlier runs finished, checked against the shards and by checksum; the rest of it is removed."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from simzss.distributed import gather_values, raise_on_all_ranks, rank, world_size
from simzss.errors import DataError
from simzss.features.blocks import ShardTask
from simzss.features.files import find_damage
from simzss.features.folder import Chunk, FeatureFolder, FinishedShard
from simzss.tasks import describing_os_errors

log = logging.getLogger(__name__)


@dataclass
class Finished:
    """Finished shards by number, and the numbers of the finished chunks of others."""

    shards: dict[int, FinishedShard] = field(default_factory=dict)
    chunks: dict[int, frozenset[int]] = field(default_factory=dict)


def find_finished(folder: FeatureFolder, tasks: Sequence[ShardTask], chunk_size: int) -> Finished:
    """Check all shards, each process its share; all processes call this, and get what all have found.

    Args:
        folder: of the features.
        tasks: all shards.
        chunk_size: records of a chunk; in an unfinished shard chunks of another size are removed.

    Raises:
        DataError: on all processes: a shard is not the one whose features are there, or there are fewer than before.
    """
    with raise_on_all_ranks(), describing_os_errors(folder.path):
        there = folder.listing()
        if max(there, default=0) >= len(tasks):
            raise DataError(
                f"output={folder.path} holds features of {max(there) + 1} shards, data.shards gives {len(tasks)}: "
                "give all of them, or another output="
            )
        mine = tasks[rank() :: world_size()]
        with ThreadPoolExecutor(4) as pool:
            checked = list(pool.map(lambda task: _check(folder, task, there.get(task.number, set()), chunk_size), mine))
    found = Finished()
    for number, shard, chunks in (entry for share in gather_values(checked) for entry in share):
        if shard is not None:
            found.shards[number] = shard
        else:
            found.chunks[number] = chunks
    return found


def _check(
    folder: FeatureFolder, task: ShardTask, there: set[Path], chunk_size: int
) -> tuple[int, FinishedShard | None, frozenset[int]]:
    """Return the number of a shard, the shard if it is finished, else its finished chunks; removes its other files."""
    shard = folder.finished(task.number)
    chunks = folder.read_chunks(task.number, there)
    if chunks and (sha256 := task.sha256()) != chunks[0].shard_sha256:
        what = f"is not the shard whose features {folder.path} holds as number {task.number}"
        if sha256 is None:
            what = f"cannot be read, and {folder.path} holds features of it"
        raise DataError(f"{task.url} {what}: remove that folder, or give another output=")
    intact = [chunk for chunk in chunks if _is_intact(folder, chunk)]
    if shard is not None and len(intact) == len(chunks) == len(shard.chunks):
        return task.number, shard, frozenset()
    kept = [chunk for chunk in intact if chunk.records == chunk_size]
    staying = {folder.chunk_record(task.number, chunk.number) for chunk in kept}
    staying |= {folder.path / chunk.file.name for chunk in kept if chunk.file is not None}
    folder.remove(there - staying)
    return task.number, None, frozenset(chunk.number for chunk in kept)


def _is_intact(folder: FeatureFolder, chunk: Chunk) -> bool:
    """Check size and SHA-256 of a chunk's file, log a warning on mismatch; a chunk without a file is intact."""
    if chunk.file is None:
        return True
    path = folder.path / chunk.file.name
    if damage := find_damage(path, chunk.file):
        log.warning("%s %s: it is made again", path, damage)
    return damage is None
