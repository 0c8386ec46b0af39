"""Decoding: records of shards to blocks of pictures, in an order that does not depend on the number of workers."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from simzss.checksums import sha256_of
from simzss.data.images import decode_image
from simzss.data.index import DamagedShardError, ListedShard
from simzss.data.shards import Skipped, parse_sample, read_members
from simzss.features.files import ImageTexts
from simzss.features.views import Views
from simzss.program import end_with_lost_batch


@dataclass(frozen=True)
class ShardTask:
    """A shard to read: its number, its path, the chunks that are finished already, and what its index says of it."""

    number: int
    url: str
    finished: frozenset[int] = frozenset()
    listed: ListedShard | None = None

    @property
    def shard(self) -> str:
        """Return the name of the tar."""
        return Path(self.url).name

    def size(self) -> int:
        """Return the bytes of the tar; 0 where it cannot be read."""
        try:
            return Path(self.url).stat().st_size
        except OSError:
            return 0

    def sha256(self) -> str | None:
        """Return the SHA-256 of the tar; None where it cannot be read, which is then among what is skipped.

        Raises:
            DamagedShardError: it is not the one that its index lists.
        """
        try:
            found = sha256_of(Path(self.url))
        except OSError:
            return None
        if self.listed is not None and self.listed.sha256 not in (None, found):
            raise DamagedShardError.of(self.url, "its SHA-256 is another one")
        return found


@dataclass(frozen=True)
class ViewBlock:
    """Consecutive records of a chunk of a shard: `images` (V, b, 3, H, W) uint8, their texts, and what is no image."""

    number: int
    chunk: int
    images: Tensor
    texts: list[ImageTexts]
    skipped: tuple[Skipped, ...]

    def pin_memory(self) -> "ViewBlock":
        """Copy the images to page-locked memory; the loader calls this."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class ShardEnd:
    """Marks that all of a shard was read: its number, and the number of its chunks."""

    number: int
    chunks: int


class ViewBlocks(IterableDataset[ViewBlock | ShardEnd]):
    """One pass over shards in order: the blocks of each that are not finished already, then its end.

    Blocks are dealt to the workers in turn. The loader asks its workers in turn as well, so that they arrive in order;
    each worker reads the tars, and parses and decodes its own blocks.

    Args:
        tasks: the shards.
        views: the pictures of an image.
        chunk_size: maximum number of records of a chunk.
        block_size: maximum number of records of a block.
    """

    def __init__(self, tasks: Sequence[ShardTask], views: Views, chunk_size: int, block_size: int) -> None:
        self.tasks = tasks
        self.views = views
        self.chunk_size = chunk_size
        self.block_size = block_size

    def __iter__(self) -> Iterator[ViewBlock | ShardEnd]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        turn = count()
        for task in self.tasks:
            chunks = 0
            for chunk, records in _split(_records(task.url), self.chunk_size, self.block_size):
                chunks = chunk + 1
                if chunk not in task.finished and next(turn) % workers == worker:
                    yield self._block(task, chunk, records)
            if next(turn) % workers == worker:
                yield ShardEnd(task.number, chunks)

    def _block(self, task: ShardTask, chunk: int, records: list[dict[str, Any] | Skipped]) -> ViewBlock:
        images: list[Tensor] = []
        texts: list[ImageTexts] = []
        skipped: list[Skipped] = []
        for record in records:
            sample = record if isinstance(record, Skipped) else parse_sample(record)
            if isinstance(sample, Skipped):
                skipped.append(sample)
                continue
            try:
                images.append(self.views.make(decode_image(sample.image, self.views.min_side), task.shard, sample.key))
            except ValueError as error:
                skipped.append(Skipped(sample.key, str(error), sample.shard))
            else:
                texts.append(ImageTexts(sample.key, sample.captions))
        stacked = torch.stack(images, dim=1) if images else torch.empty(0)
        # By its name alone: what the files hold does not depend on where the shards lie.
        named = tuple(replace(entry, shard=task.shard) for entry in skipped)
        return ViewBlock(task.number, chunk, stacked, texts, named)


def view_loader(blocks: ViewBlocks, num_workers: int, pin: bool) -> DataLoader:
    """Load the blocks by so many decoding processes, to page-locked memory if `pin`."""
    # Forked where that is safe: workers start at once and share what is imported.
    forked = num_workers > 0 and sys.platform == "linux"
    return DataLoader(
        blocks,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin,
        generator=torch.Generator(),  # keeps the loader from drawing its workers' seed from the run's random stream
        multiprocessing_context="fork" if forked else None,
        worker_init_fn=end_with_lost_batch,
    )


def _split(
    records: Iterator[dict[str, Any] | Skipped], chunk_size: int, block_size: int
) -> Iterator[tuple[int, list[dict[str, Any] | Skipped]]]:
    """Yield (chunk, up to `block_size` records of it) in order; no block reaches into the next chunk."""
    for chunk in count():
        left = chunk_size
        while left:
            block = list(islice(records, min(block_size, left)))
            if not block:
                return
            left -= len(block)
            yield chunk, block


def _records(url: str) -> Iterator[dict[str, Any] | Skipped]:
    """Read one shard as `read_shards` does, its records unparsed: a worker parses only its own."""
    broken: list[Skipped] = []
    yield from read_members([url], broken.append)
    yield from broken
