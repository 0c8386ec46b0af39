"""Decoding for a cache: records of shards as blocks of pictures, in an order that no number of workers changes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from simzss.data.shards import Skipped, decode_image, parse_sample, read_members
from simzss.features.files import ImageTexts
from simzss.features.views import Views


@dataclass(frozen=True)
class Task:
    """A shard to read: its number, its path, and the parts of it that are finished already."""

    number: int
    url: str
    kept: frozenset[int] = frozenset()

    @property
    def shard(self) -> str:
        """Name of the tar."""
        return Path(self.url).name


@dataclass(frozen=True)
class ViewBlock:
    """Consecutive records of a part of a shard: `images` (V, b, 3, H, W) uint8, their texts, and what is no image."""

    number: int
    part: int
    images: Tensor
    texts: list[ImageTexts]
    skipped: tuple[Skipped, ...]

    def pin_memory(self) -> "ViewBlock":
        """Its images in page-locked memory; the loader calls this."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class ShardEnd:
    """All of a shard was read; `parts` is how many it has."""

    number: int
    parts: int


class ViewBlocks(IterableDataset[ViewBlock | ShardEnd]):
    """One pass over shards in order: the blocks of each that are not finished already, then its end.

    Blocks are dealt to the workers in turn. The loader asks its workers in turn as well, so that they arrive in order;
    each worker reads the tars, and parses and decodes what is its own.

    Args:
        tasks: the shards.
        views: the pictures of an image.
        part_size: records of a part at most.
        block_size: records of a block at most.
    """

    def __init__(self, tasks: Sequence[Task], views: Views, part_size: int, block_size: int) -> None:
        self.tasks = tasks
        self.views = views
        self.part_size = part_size
        self.block_size = block_size

    def __iter__(self) -> Iterator[ViewBlock | ShardEnd]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        turn = count()
        for task in self.tasks:
            parts = 0
            for part, records in _chunks(_records(task.url), self.part_size, self.block_size):
                parts = part + 1
                if part not in task.kept and next(turn) % workers == worker:
                    yield self._block(task, part, records)
            if next(turn) % workers == worker:
                yield ShardEnd(task.number, parts)

    def _block(self, task: Task, part: int, records: list[dict[str, Any] | Skipped]) -> ViewBlock:
        images: list[Tensor] = []
        texts: list[ImageTexts] = []
        skipped: list[Skipped] = []
        for record in records:
            sample = record if isinstance(record, Skipped) else parse_sample(record)
            if isinstance(sample, Skipped):
                skipped.append(sample)
                continue
            try:
                images.append(self.views.make(decode_image(sample.image, self.views.least), task.shard, sample.key))
            except ValueError as error:
                skipped.append(Skipped(sample.key, str(error), sample.shard))
            else:
                texts.append(ImageTexts(sample.key, sample.captions))
        stacked = torch.stack(images, dim=1) if images else torch.empty(0)
        # By its name alone: what the files hold does not depend on where the shards lie.
        named = tuple(replace(entry, shard=task.shard) for entry in skipped)
        return ViewBlock(task.number, part, stacked, texts, named)


def view_loader(blocks: ViewBlocks, num_workers: int, pin: bool) -> DataLoader:
    """The blocks by so many decoding processes, in page-locked memory if `pin`."""
    return DataLoader(
        blocks,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin,
        generator=torch.Generator(),  # keeps the loader from drawing its workers' seed from the run's random stream
        multiprocessing_context="fork" if num_workers else None,
    )


def _chunks(
    records: Iterator[dict[str, Any] | Skipped], part_size: int, block_size: int
) -> Iterator[tuple[int, list[dict[str, Any] | Skipped]]]:
    """(part, up to `block_size` records of it) in order; no block reaches into the next part."""
    for part in count():
        left = part_size
        while left:
            block = list(islice(records, min(block_size, left)))
            if not block:
                return
            left -= len(block)
            yield part, block


def _records(url: str) -> Iterator[dict[str, Any] | Skipped]:
    """What `read_shards` gives for one shard, its records unparsed: a worker parses only its own."""
    broken: list[Skipped] = []
    yield from read_members([url], broken.append)
    yield from broken
