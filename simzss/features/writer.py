"""The files of a cache in the making: blocks of features in order, to parts, their records and the stamps of shards."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from simzss.atomic import write_json
from simzss.data.shards import Skipped
from simzss.distributed import world_size
from simzss.errors import InputError
from simzss.features.blocks import ShardEnd, Task, ViewBlock
from simzss.features.files import ImageTexts, hash_file, write_features
from simzss.features.folder import CacheFolder, Part, Stamp, writing
from simzss.features.metadata import CacheFacts

PENDING = 2
"""Files that wait for the disk at most, beside the one that fills; each in a thread of its own."""


@dataclass
class Computed:
    """A block and its features on the host, which are there once `arrived` is."""

    block: ViewBlock
    tensors: dict[str, Tensor]
    arrived: torch.Event | None

    def features(self) -> dict[str, Tensor]:
        """`cls` (b, V, D) and the others, waited for."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensors


@dataclass
class _OpenPart:
    """The part that fills: one block of memory for the images of all of its records."""

    number: int
    part: int
    size: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    texts: list[ImageTexts] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, computed: Computed) -> None:
        start = len(self.texts)
        self.texts += computed.block.texts
        self.skipped += computed.block.skipped
        for name, tensor in computed.features().items():
            if name not in self.tensors:
                self.tensors[name] = torch.empty(self.size, *tensor.shape[1:], dtype=tensor.dtype)
            self.tensors[name][start : len(self.texts)] = tensor

    def filled(self) -> dict[str, Tensor]:
        return {name: tensor[: len(self.texts)] for name, tensor in self.tensors.items()}


class PartWriter:
    """Takes computed blocks in order, and writes files, records and stamps behind the back of the device."""

    def __init__(self, folder: CacheFolder, facts: CacheFacts, part_size: int, tasks: Sequence[Task]) -> None:
        self._folder = folder
        self._facts = facts
        self._part_size = part_size
        self._tasks = {task.number: task for task in tasks}
        self._order = [task.number for task in tasks]
        self._place = {number: place for place, number in enumerate(self._order)}
        self._open: _OpenPart | None = None
        self._parts: dict[int, dict[int, Future[Part]]] = {}
        self._stamps: dict[int, Future[Stamp]] = {}
        self._pending: deque[Future[Part]] = deque()
        self._pool = ThreadPoolExecutor(PENDING)
        self._hashing = ThreadPoolExecutor(1)
        self._digests: dict[int, Future[str | None]] = {}

    def __enter__(self) -> "PartWriter":
        self._hash(0)
        return self

    def __exit__(self, *error: object) -> None:
        for pool in (self._pool, self._hashing):
            pool.shutdown(wait=True, cancel_futures=True)

    def take(self, item: Computed | ShardEnd) -> int:
        """The next block, or the end of a shard; returns how many records it was.

        Raises:
            InputError: a file before could not be written.
        """
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()  # an error is met at once, not files later
        if isinstance(item, ShardEnd):
            self._close()
            parts = self._parts.pop(item.number, {})
            self._stamps[item.number] = self._pool.submit(self._stamp, item, parts)
            return 0
        block = item.block
        if self._open is None or (self._open.number, self._open.part) != (block.number, block.part):
            self._close()
            self._open = _OpenPart(block.number, block.part, self._part_size)
            self._hash(self._place[block.number] + 1)  # the next shard, while this one goes on
        self._open.add(item)
        return len(block.texts) + len(block.skipped)

    def stamps(self) -> dict[int, Stamp]:
        """The stamps of all shards, once everything is written."""
        return {number: stamp.result() for number, stamp in self._stamps.items()}

    def _hash(self, index: int) -> None:
        """Begin to hash a shard, whose hash goes into its files."""
        if index < len(self._order) and (number := self._order[index]) not in self._digests:
            self._digests[number] = self._hashing.submit(hash_shard, self._tasks[number].url)

    def _digest(self, number: int) -> str | None:
        self._hash(self._place[number])
        return self._digests[number].result()

    def _close(self) -> None:
        if self._open is None:
            return
        part, self._open = self._open, None
        if world_size() > 1 and self._folder.stop.exists():
            raise InputError("stopped: another process has failed, as it says itself; what is finished stays")
        while len(self._pending) >= PENDING:
            self._pending.popleft().result()
        future = self._pool.submit(self._write, part)
        self._pending.append(future)
        self._parts.setdefault(part.number, {})[part.part] = future

    def _write(self, part: _OpenPart) -> Part:
        """Write the file of a part, then the record that vouches for it."""
        sha256 = self._digest(part.number)
        path = self._folder.features(part.number, part.part)
        file = None
        if part.texts:
            metadata = {
                "facts": self._facts.digest,
                "shard": self._tasks[part.number].shard,
                "shard_sha256": str(sha256),
                "part": str(part.part),
            }
            with writing(path):
                file = write_features(path, part.filled(), part.texts, part.skipped, metadata)
        skipped = tuple((entry.key, entry.reason) for entry in part.skipped)
        record = Part(part.part, self._part_size, sha256, file, skipped)
        if sha256 is not None:  # a tar that cannot be opened now is tried again by the next run
            with writing(self._folder.part(part.number, part.part)):
                write_json(self._folder.part(part.number, part.part), record.to_json())
        return record

    def _stamp(self, end: ShardEnd, parts: Mapping[int, Future[Part]]) -> Stamp:
        """Leave the stamp of a shard whose parts are written; waits for those that are under way."""
        done = {number: future.result() for number, future in parts.items()}
        task = self._tasks[end.number]
        kept = (self._folder.read_part(end.number, number) for number in task.kept)
        done |= {part.number: part for part in kept if part is not None}
        ordered = [done[number] for number in range(end.parts)]
        stamp = Stamp(
            end.number,
            task.shard,
            shard_size(task.url),
            self._digest(end.number),
            tuple(ordered),
        )
        if stamp.sha256 is not None:
            with writing(self._folder.stamp(end.number)):
                self._folder.finish(stamp)
        return stamp


def hash_shard(url: str) -> str | None:
    """SHA-256 of a tar; None where it cannot be read, as what is skipped says."""
    try:
        return hash_file(Path(url))
    except OSError:
        return None


def shard_size(url: str) -> int:
    """Bytes of a tar; 0 where it cannot be read."""
    try:
        return Path(url).stat().st_size
    except OSError:
        return 0
