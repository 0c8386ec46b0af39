"""Files of features in the making: blocks in order, to chunks, their records and the done markers of shards."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from simzss.data.shards import Skipped
from simzss.distributed import world_size
from simzss.errors import DataError
from simzss.features.blocks import ShardEnd, ShardTask, ViewBlock
from simzss.features.files import ImageTexts, write_features
from simzss.features.folder import Chunk, FeatureFolder, FinishedShard
from simzss.features.metadata import FeatureMetadata

PENDING = 2
"""Maximum number of files that wait for the disk, beside the one that fills; each in a thread of its own."""


@dataclass
class ComputedBlock:
    """A block and its features on the host, which are there once `arrived` is."""

    block: ViewBlock
    tensors: dict[str, Tensor]
    arrived: torch.Event | None

    def features(self) -> dict[str, Tensor]:
        """Return `cls` (b, V, D) and the others, once they have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensors


@dataclass
class _OpenChunk:
    """The chunk that fills: one block of memory for the images of all of its records."""

    number: int
    chunk: int
    size: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    texts: list[ImageTexts] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, computed: ComputedBlock) -> None:
        start = len(self.texts)
        self.texts += computed.block.texts
        self.skipped += computed.block.skipped
        for name, tensor in computed.features().items():
            if name not in self.tensors:
                self.tensors[name] = torch.empty(self.size, *tensor.shape[1:], dtype=tensor.dtype)
            self.tensors[name][start : len(self.texts)] = tensor

    def filled(self) -> dict[str, Tensor]:
        return {name: tensor[: len(self.texts)] for name, tensor in self.tensors.items()}


class ChunkWriter:
    """Takes computed blocks in order, and writes files and records in background threads while the device computes.

    Args:
        folder: of the features.
        metadata: of the features.
        chunk_size: maximum number of records of a chunk.
        tasks: shards in the order of their blocks.
    """

    def __init__(
        self, folder: FeatureFolder, metadata: FeatureMetadata, chunk_size: int, tasks: Sequence[ShardTask]
    ) -> None:
        self._folder = folder
        self._metadata = metadata
        self._chunk_size = chunk_size
        self._tasks = tasks
        self._position = {task.number: position for position, task in enumerate(tasks)}
        self._open: _OpenChunk | None = None
        self._chunks: dict[int, dict[int, Future[Chunk]]] = {}
        self._shards: dict[int, Future[FinishedShard]] = {}
        self._pending: deque[Future[Chunk]] = deque()
        self._pool = ThreadPoolExecutor(PENDING)
        self._hashing = ThreadPoolExecutor(1)
        self._digests: list[Future[str | None]] = []  # of the first tasks, whose hashes go into their files

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for pool in (self._pool, self._hashing):
            pool.shutdown(wait=True, cancel_futures=True)

    def take(self, item: ComputedBlock | ShardEnd) -> int:
        """Take the next block, or the end of a shard; returns its number of records.

        Raises:
            OSError: a file before could not be written.
            DataError: another process has failed, or a shard is not what its index.json says.
        """
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()  # an error is met at once, not files later
        number = item.number if isinstance(item, ShardEnd) else item.block.number
        # The next shard is hashed while this one goes on.
        for task in self._tasks[len(self._digests) : self._position[number] + 2]:
            self._digests.append(self._hashing.submit(task.sha256))
        if isinstance(item, ShardEnd):
            self._close()
            self._shards[number] = self._pool.submit(self._finish, item, self._chunks.pop(number, {}))
            return 0
        block = item.block
        if self._open is None or (self._open.number, self._open.chunk) != (number, block.chunk):
            self._close()
            self._open = _OpenChunk(number, block.chunk, self._chunk_size)
        self._open.add(item)
        return len(block.texts) + len(block.skipped)

    def finished(self) -> dict[int, FinishedShard]:
        """Wait until everything is written; returns all shards by number."""
        return {number: shard.result() for number, shard in self._shards.items()}

    def _close(self) -> None:
        """Hand the chunk that fills to a thread; waits for the disk when it is too slow."""
        if self._open is None:
            return
        chunk, self._open = self._open, None
        if world_size() > 1 and self._folder.stop.exists():
            raise DataError("stopped: another process has failed, as it says itself; what is finished stays")
        while len(self._pending) >= PENDING:
            self._pending.popleft().result()
        future = self._pool.submit(self._write, chunk)
        self._pending.append(future)
        self._chunks.setdefault(chunk.number, {})[chunk.chunk] = future

    def _write(self, chunk: _OpenChunk) -> Chunk:
        """Write the file of a chunk, then its record."""
        position = self._position[chunk.number]
        sha256 = self._digests[position].result()
        file = None
        if chunk.texts:
            metadata = {
                "facts": self._metadata.fingerprint,
                "shard": self._tasks[position].shard,
                "shard_sha256": str(sha256),
                "part": str(chunk.chunk),
            }
            path = self._folder.result(chunk.number, chunk.chunk)
            file = write_features(path, chunk.filled(), chunk.texts, chunk.skipped, metadata)
        skipped = tuple((entry.key, entry.reason) for entry in chunk.skipped)
        record = Chunk(part=chunk.chunk, records=self._chunk_size, shard_sha256=sha256, file=file, skipped=skipped)
        if sha256 is not None:  # a tar that cannot be opened now is tried again by the next run
            self._folder.finish_chunk(chunk.number, record)
        return record

    def _finish(self, end: ShardEnd, written: Mapping[int, Future[Chunk]]) -> FinishedShard:
        """Leave the done marker of a shard; waits for those of its chunks that are being written."""
        position = self._position[end.number]
        task = self._tasks[position]
        read = [self._folder.read_chunk(end.number, chunk) for chunk in task.finished]
        chunks = {chunk.number: chunk for chunk in read if chunk is not None}
        chunks |= {number: future.result() for number, future in written.items()}
        ordered = tuple(chunks[number] for number in range(end.chunks))
        shard = FinishedShard(end.number, task.shard, task.size(), self._digests[position].result(), ordered)
        if shard.sha256 is not None:
            self._folder.finish(shard)
        return shard
