"""Datasets over shards: an endless shuffled stream for training, one ordered pass for statistics and caches.

Both hand over small blocks; those of the stream become batches in the training process.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.data import IterableDataset, get_worker_info

from simzss.concepts.concept import Caption
from simzss.data.shards import Sample, Skipped, decode_image, read_shards, shard_order
from simzss.data.transforms import Transform
from simzss.distributed import rank, world_size
from simzss.errors import InputError
from simzss.training.data.batch import Batch, collate
from simzss.training.data.encoding import CaptionEncoder, EncodedCaption
from simzss.training.data.prefetch import unwanted

Record = TypeVar("Record")


# Samples or tars without one that can be read, after which there is no hope: at once, and when all were tried.
_HOPELESS = 10_000
_MANY = 100


@dataclass
class StreamBlock:
    """What a worker hands over: `image` (b, 3, H, W) uint8 with k captions of each."""

    image: Tensor
    captions: list[tuple[EncodedCaption, ...]]
    skipped: tuple[Skipped, ...]

    def pin_memory(self) -> "StreamBlock":
        """Its images in page-locked memory; the loader calls this."""
        return replace(self, image=self.image.pin_memory())


@dataclass
class ImageBlock:
    """A block of consecutive readable images: `image` (b, 3, H, W) uint8 with all their captions."""

    image: Tensor
    captions: list[tuple[Caption, ...]]
    skipped: tuple[Skipped, ...]

    def pin_memory(self) -> "ImageBlock":
        """Its images in page-locked memory; the loader calls this."""
        return replace(self, image=self.image.pin_memory())


def load_image(sample: Sample, transform: Transform) -> Tensor | Skipped:
    """Decode and transform; an unreadable image becomes `Skipped`."""
    try:
        return transform(decode_image(sample.image, transform.least))
    except ValueError as error:
        return Skipped(sample.key, str(error), sample.shard)


class NothingReadableError(InputError):
    """The shards hold no readable sample.

    A loader raises an error of its workers anew, with the whole traceback as the message. Only the end of that is kept:
    the worker's own message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[-1].strip())


class TrainingStream(IterableDataset[StreamBlock]):
    """Endless blocks of images in random crops, with random captions of each.

    Every pass over the shards is dealt out to all readers, the workers of all ranks, and goes through a shuffle buffer
    of each: a sample comes once a pass, from one reader, and a reader begins with the next pass when its own part of
    one is done. The parts differ in size by no more than the shards do, and a few samples. A block ends with the pass.

    The stream is a function of (seed, epoch, rank, worker): an epoch is the same whether the run was resumed or not.

    Args:
        urls: shards.
        transform: PIL image -> (3, H, W) uint8.
        encoder: captions -> tokens and concepts.
        block_size: images of a block, at most. Few: a worker that is told to end finishes its block first.
        captions_per_image: captions of each image; none comes twice where it has that many.
        shuffle: samples in the shuffle buffer.
        seed: of the run.
        epoch: of this stream.

    Raises:
        NothingReadableError: while iterating, after many samples or tars of which not one could be read.
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
        draws = _OwnDraws(torch.Generator().manual_seed(rng.getrandbits(63)))
        images: list[Tensor] = []
        captions: list[Caption] = []
        skipped: list[Skipped] = []
        missed = missed_passes = 0  # records and passes since the last readable image
        for parts in _passes(self.urls, self.seed, self.epoch, reader, readers):
            for record in _shuffled(_read(parts), self.shuffle, rng):
                loaded: Tensor | Skipped
                if isinstance(record, Sample):
                    with draws:
                        loaded = load_image(record, self.transform)
                else:
                    loaded = record
                if isinstance(record, Sample) and isinstance(loaded, Tensor):
                    images.append(loaded)
                    captions += _chosen(record.captions, self.captions_per_image, rng)
                    missed = missed_passes = 0
                elif isinstance(loaded, Skipped):
                    skipped.append(loaded)
                    missed += 1
                    if missed > _HOPELESS:
                        raise _nothing_readable(skipped, missed)
                if len(images) == self.block_size:
                    yield self._block(images, captions, skipped)
                    images, captions, skipped = [], [], []
            if images:
                yield self._block(images, captions, skipped)
                images, captions, skipped, missed = [], [], [], 0
            else:
                missed_passes += 1
            # So many that a reader has had parts of all shards, whatever the order of each pass.
            if missed > _MANY and missed_passes > 10 * readers:
                raise _nothing_readable(skipped, missed)

    def _block(self, images: list[Tensor], captions: list[Caption], skipped: list[Skipped]) -> StreamBlock:
        encoded = iter(self.encoder.encode(captions))
        grouped = [tuple(islice(encoded, self.captions_per_image)) for _ in images]
        return StreamBlock(torch.stack(images), grouped, tuple(skipped))


def assemble(blocks: Iterable[StreamBlock], images: int, pad_id: int, most_captions: int | None) -> Iterator[Batch]:
    """Consecutive blocks cut into batches; what is left of a block begins the next one.

    The workers of a loader start at once, in the thread that calls this.

    Args:
        blocks: a loader or any other source.
        images: of a batch.
        pad_id: token that fills a text block up.
        most_captions: captions of a text block at most, None for any number.

    Yields:
        Batches with what was skipped since the one before; what is skipped after the last whole batch is in none.
    """
    return _batches(iter(blocks), _Filling(images, pad_id, most_captions))


def _batches(blocks: Iterator[StreamBlock], filling: "_Filling") -> Iterator[Batch]:
    with workers_ended(blocks):
        for block in blocks:
            if unwanted():
                return
            filling.skipped += block.skipped
            taken = 0
            while taken < len(block.captions):
                taken += filling.take(block, taken)
                if filling.full:
                    yield filling.finish()


@contextmanager
def workers_ended(blocks: Iterator[Any]) -> Iterator[None]:
    """End the workers of a loader's iterator on the way out.

    They end with it when it is dropped. But what an error comes out of is in a circle with the error's traceback until
    the garbage collector finds it, and that closes the queues first: no word reaches the workers then, and torch waits
    five seconds for each before it kills it.
    """
    try:
        yield
    finally:
        end = getattr(blocks, "_shutdown_workers", None)  # torch has no public word for it
        if end is not None:
            end()


class _Filling:
    """A batch that is being filled; the images of blocks are copied to their place in it and exist nowhere else."""

    def __init__(self, images: int, pad_id: int, most_captions: int | None) -> None:
        self.images = images
        self.pad_id = pad_id
        self.most_captions = most_captions
        self.skipped: list[Skipped] = []
        self._image: Tensor | None = None
        self._captions: list[tuple[EncodedCaption, ...]] = []

    @property
    def full(self) -> bool:
        return len(self._captions) == self.images

    def take(self, block: StreamBlock, first: int) -> int:
        """Copy images of a block from its `first` on, as many as there is room for; returns their number."""
        if self._image is None:
            # Pinned where the blocks are. A new one for each batch: its reader may still have the one before.
            shape = (self.images, *block.image.shape[1:])
            self._image = torch.empty(shape, dtype=block.image.dtype, pin_memory=block.image.is_pinned())
        done = len(self._captions)
        count = min(self.images - done, len(block.captions) - first)
        self._image[done : done + count] = block.image[first : first + count]
        self._captions += block.captions[first : first + count]
        return count

    def finish(self) -> Batch:
        """The batch; another one is begun, and nothing of this one kept."""
        image, captions, skipped = self._image, self._captions, self.skipped
        assert image is not None
        self._image, self._captions, self.skipped = None, [], []
        rows = [row for row, several in enumerate(captions) for _ in several]
        batch = collate(
            [caption for several in captions for caption in several],
            self.pad_id,
            image=image,
            image_row=torch.tensor(rows) if len(rows) > self.images else None,
            skipped=skipped,
            most_captions=self.most_captions,
        )
        return batch.pin_memory() if image.is_pinned() else batch  # the images stay where they are


class OrderedBlocks(IterableDataset[ImageBlock]):
    """One pass over the shards in order, in blocks of consecutive samples dealt to ranks and workers in turn.

    The loader asks its workers in turn as well, so the blocks of a rank arrive in the order of the shards however
    many workers there are.
    """

    def __init__(self, urls: Sequence[str], transform: Transform, block_size: int) -> None:
        self.urls = urls
        self.transform = transform
        self.block_size = block_size

    def __iter__(self) -> Iterator[ImageBlock]:
        worker, workers = _worker()
        mine, of = rank() + world_size() * worker, world_size() * workers
        stream = read_shards(self.urls)
        index = 0
        while records := list(islice(stream, self.block_size)):
            if index % of == mine:
                yield self._block(records)
            index += 1

    def _block(self, records: list[Sample | Skipped]) -> ImageBlock:
        images: list[Tensor] = []
        captions: list[tuple[Caption, ...]] = []
        skipped: list[Skipped] = []
        for record in records:
            loaded = load_image(record, self.transform) if isinstance(record, Sample) else record
            if isinstance(loaded, Tensor) and isinstance(record, Sample):
                images.append(loaded)
                captions.append(record.captions)
            elif isinstance(loaded, Skipped):
                skipped.append(loaded)
        return ImageBlock(torch.stack(images) if images else torch.empty(0), captions, tuple(skipped))


def _worker() -> tuple[int, int]:
    """Index of this loading process and their number."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info is not None else (0, 1)


def _passes(urls: Sequence[str], seed: int, epoch: int, reader: int, readers: int) -> Iterator[list["_Part"]]:
    """Endless passes over the shards: of each a part, that of one of `readers`.

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
                parts.append(_Part(url, range(begin - number * cuts, end - number * cuts), cuts))
        yield parts


@dataclass(frozen=True)
class _Part:
    """Those samples of a shard whose place in it, modulo `cuts`, is in `mine`."""

    url: str
    mine: range
    cuts: int


def _read(parts: Iterable[_Part]) -> Iterator[Sample | Skipped]:
    """The samples of parts of shards; readers of other parts of a shard count its records alike, broken ones too."""
    for part in parts:
        for place, record in enumerate(read_shards([part.url])):
            if place % part.cuts in part.mine:
                yield record


def _shuffled(records: Iterable[Record], size: int, rng: random.Random) -> Iterator[Record]:
    """All records, through a buffer of `size` of them.

    What is skipped takes a place in it as well: it comes between the others, and when nothing else is there.
    """
    buffer: list[Record] = []
    for record in records:
        buffer.append(record)
        if len(buffer) > size:
            place = rng.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
    rng.shuffle(buffer)
    while buffer:
        yield buffer.pop()


def _chosen(captions: Sequence[Caption], count: int, rng: random.Random) -> list[Caption]:
    """`count` captions in random order, each as often as any other as far as that is possible."""
    order = rng.sample(captions, len(captions))
    return [order[i % len(order)] for i in range(count)]


class _OwnDraws(TorchFunctionMode):
    """Inside, transforms draw from `generator` where they would have drawn from torch's common one.

    That belongs to the run: without workers, or in a thread, what a transform took from it would shift the run's
    numbers, and what the run takes at the same time would shift the crops.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWING:
            kwargs = {"generator": self.generator} | kwargs
        return func(*args, **kwargs)


# Functions and methods of torch that draw random numbers.
_DRAWING = {"bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm"}
_DRAWING |= {"bernoulli_", "exponential_", "normal_", "random_", "uniform_"}


def _nothing_readable(skipped: Sequence[Skipped], missed: int) -> NothingReadableError:
    """What to say when the last `missed` of what was skipped were all that came."""
    first = skipped[-missed]
    return NothingReadableError(f"no readable sample among the last {missed}; first: {first.key}: {first.reason}")
