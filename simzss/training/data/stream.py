"""Images of shards as they stream by: an endless shuffled stream for training, one ordered pass for statistics."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from simzss.concepts.concept import Caption
from simzss.data.images import decode_image
from simzss.data.index import WorkerError
from simzss.data.shards import Sample, Skipped, read_shards, shard_order
from simzss.data.transforms import Transform
from simzss.distributed import rank, world_size
from simzss.training.data.encoding import CaptionEncoder, EncodedCaption

Record = TypeVar("Record")

# Unreadable samples or tars in a row after which a reader gives up: at once, and at the end of several passes.
_MAX_SKIPPED = 10_000
_MAX_SKIPPED_IN_PASSES = 100


@dataclass
class StreamBlock:
    """Some images with k captions of each, as a worker hands them over.

    Attributes:
        pixels: (b, 3, H, W) uint8.
        captions: k of each image.
        skipped: samples that could not be read on the way.
    """

    pixels: Tensor
    captions: list[tuple[EncodedCaption, ...]]
    skipped: tuple[Skipped, ...]

    def pin_memory(self) -> "StreamBlock":
        """Return a copy whose images are in page-locked memory; the loader calls this."""
        return replace(self, pixels=self.pixels.pin_memory())


class NothingReadableError(WorkerError):
    """The shards hold no readable sample."""


class TrainingStream(IterableDataset[StreamBlock]):
    """Endless blocks of transformed images with random captions of each.

    Every pass over the shards is dealt out to all readers, the workers of all ranks, and goes through a shuffle buffer
    of each: a sample comes once a pass, from one reader, and a reader begins with the next pass when its own part of
    one is done. The parts differ in size by no more than the shards do, and a few samples. A block ends with the pass.

    The stream is a function of (seed, epoch, rank, worker): an epoch is the same whether the run was resumed or not.

    Args:
        urls: shards.
        transform: such as a random crop; draws from a generator of the stream.
        encoder: captions -> tokens and concepts.
        block_size: images of a block, at most. Few: a worker that is told to end finishes its block first.
        captions_per_image: captions of each image; none comes twice where it has that many.
        shuffle: samples in the shuffle buffer.
        seed: of the run.
        epoch: of this stream.

    Raises:
        NothingReadableError: while iterating, after many samples or tars of which not one could be read.
        DamagedShardError: while iterating, at the end of a shard that is not what its index.json says.
    """

    def __init__(
        self,
        urls: Sequence[str],
        transform: Transform,
        encoder: CaptionEncoder,
        block_size: int,
        captions_per_image: int,
        shuffle: int,
        seed: int,
        epoch: int,
    ) -> None:
        self.urls = urls
        self.transform = transform
        self.encoder = encoder
        self.block_size = block_size
        self.captions_per_image = captions_per_image
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch

    def __iter__(self) -> Iterator[StreamBlock]:
        worker, workers = _worker()
        reader, readers = rank() * workers + worker, world_size() * workers
        rng = random.Random(f"{self.seed}/{self.epoch}/{reader}")
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        pixels: list[Tensor] = []
        captions: list[Caption] = []
        skipped: list[Skipped] = []
        missed = missed_passes = 0  # records and passes since the last readable image
        for parts in deal_passes(self.urls, self.seed, self.epoch, reader, readers):
            for record in shuffled(read_parts(parts), self.shuffle, rng):
                image = load_image(record, self.transform, generator)
                if isinstance(image, Skipped):
                    skipped.append(image)
                    missed += 1
                    if missed > _MAX_SKIPPED:
                        raise _nothing_readable(skipped, missed)
                elif isinstance(record, Sample):
                    pixels.append(image)
                    captions += _draw_captions(record.captions, self.captions_per_image, rng)
                    missed = missed_passes = 0
                if len(pixels) == self.block_size:
                    yield self._block(pixels, captions, skipped)
                    pixels, captions, skipped = [], [], []
            if pixels:
                yield self._block(pixels, captions, skipped)
                pixels, captions, skipped, missed = [], [], [], 0
            else:
                missed_passes += 1
            # So many that a reader has had parts of all shards, whatever the order of each pass.
            if missed > _MAX_SKIPPED_IN_PASSES and missed_passes > 10 * readers:
                raise _nothing_readable(skipped, missed)

    def _block(self, pixels: list[Tensor], captions: list[Caption], skipped: list[Skipped]) -> StreamBlock:
        encoded = iter(self.encoder.encode(captions))
        grouped = [tuple(islice(encoded, self.captions_per_image)) for _ in pixels]
        return StreamBlock(torch.stack(pixels), grouped, tuple(skipped))


class OrderedImages(IterableDataset[Tensor]):
    """One pass over the readable images in order, in blocks (b, 3, H, W) dealt to ranks and workers in turn.

    The loader asks its workers in turn as well, so the blocks of a rank arrive in the order of the shards however
    many workers there are.
    """

    def __init__(self, urls: Sequence[str], transform: Transform, block_size: int) -> None:
        self.urls = urls
        self.transform = transform
        self.block_size = block_size

    def __iter__(self) -> Iterator[Tensor]:
        worker, workers = _worker()
        mine, readers = rank() + world_size() * worker, world_size() * workers
        stream = read_shards(self.urls)
        for number in count():
            records = list(islice(stream, self.block_size))
            if not records:
                return
            if number % readers == mine:
                loaded = [load_image(record, self.transform) for record in records]
                images = [image for image in loaded if isinstance(image, Tensor)]
                yield torch.stack(images) if images else torch.empty(0)  # the worker's turn counts in any case


def load_image(
    record: Sample | Skipped, transform: Transform, generator: torch.Generator | None = None
) -> Tensor | Skipped:
    """Decode and transform the image of a sample; what cannot be read is, or stays, `Skipped`."""
    if isinstance(record, Skipped):
        return record
    try:
        return transform(decode_image(record.image, transform.min_side), generator)
    except ValueError as error:
        return Skipped(record.key, str(error), record.shard)


def _worker() -> tuple[int, int]:
    """Return the index of this loading process and their number."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info is not None else (0, 1)


@dataclass(frozen=True)
class ShardPart:
    """The samples of a shard whose index modulo `cuts` is in `mine`."""

    url: str
    mine: range
    cuts: int


def deal_passes(urls: Sequence[str], seed: int, epoch: int, reader: int, readers: int) -> Iterator[list[ShardPart]]:
    """Yield what one of `readers` reads of each of endless passes over the shards.

    The shards of a pass, in an order that is common to all readers, are cut in as many parts as it takes to deal them
    out evenly, and dealt out in runs: of n shards a multiple of the readers stays whole, and one shard for two readers
    gives its even samples to one and its odd samples to the other. The runs go round from pass to pass, so that a
    reader whose run holds nothing, when there are fewer samples than readers, is not left without for ever.
    """
    common = math.gcd(len(urls), readers)
    cuts, share = readers // common, len(urls) // common  # parts of a shard and of a reader
    for passes, order in enumerate(shard_order(urls, seed, epoch)):
        first = (reader + passes) % readers * share
        parts = []
        for number, url in enumerate(order):
            begin, end = max(first, number * cuts), min(first + share, (number + 1) * cuts)
            if begin < end:
                parts.append(ShardPart(url, range(begin - number * cuts, end - number * cuts), cuts))
        yield parts


def read_parts(parts: Iterable[ShardPart]) -> Iterator[Sample | Skipped]:
    """Yield the samples of parts of shards; readers of other parts count a shard's records alike, broken ones too."""
    for part in parts:
        for index, record in enumerate(read_shards([part.url])):
            if index % part.cuts in part.mine:
                yield record


def shuffled(records: Iterable[Record], size: int, rng: random.Random) -> Iterator[Record]:
    """Yield all records through a shuffle buffer of `size`.

    What is skipped goes through it as well: it comes between the others, and when nothing else is there.
    """
    buffer: list[Record] = []
    for record in records:
        buffer.append(record)
        if len(buffer) > size:
            index = rng.randrange(len(buffer))
            buffer[index], buffer[-1] = buffer[-1], buffer[index]
            yield buffer.pop()
    rng.shuffle(buffer)
    while buffer:
        yield buffer.pop()


def _draw_captions(captions: Sequence[Caption], count: int, rng: random.Random) -> list[Caption]:
    """Draw `count` captions in random order, each as often as any other as far as that is possible."""
    order = rng.sample(captions, len(captions))
    return [order[i % len(order)] for i in range(count)]


def _nothing_readable(skipped: Sequence[Skipped], missed: int) -> NothingReadableError:
    """Build the error after `missed` skipped samples in a row."""
    first = skipped[-missed]
    return NothingReadableError(f"no readable sample among the last {missed}; first: {first.key}: {first.reason}")
