"""Datasets over shards: an endless shuffled stream for training, one ordered pass for caching features."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from simzss.concepts.concept import Caption
from simzss.data.batch import Batch, CaptionEncoder, collate
from simzss.data.shards import Sample, Skipped, decode_image, read_shards, shard_order
from simzss.data.transforms import Transform
from simzss.distributed import rank, world_size
from simzss.errors import InputError


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


class TrainingStream(IterableDataset[Batch]):
    """Endless batches: shards in seeded order, a shuffle buffer, one random caption per image.

    The stream is a function of (seed, epoch, rank, worker): an epoch is the same whether the run was resumed or not.

    Args:
        urls: shards.
        transform: PIL image -> (3, H, W) uint8.
        encoder: captions -> tokens and concepts.
        batch_size: images a batch, on this rank.
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
        batch_size: int,
        shuffle: int,
        seed: int,
        epoch: int,
    ) -> None:
        self.urls = urls
        self.transform = transform
        self.encoder = encoder
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        consumer, consumers = rank() * workers + worker, world_size() * workers
        tag = f"{self.seed}/{self.epoch}/{consumer}"
        rng = random.Random(tag)
        urls = shard_order(self.urls, self.seed, self.epoch, consumer, consumers)
        images: list[Tensor] = []
        captions: list[Caption] = []
        skipped: list[Skipped] = []
        # Crops draw from torch's generator of the CPU, which has this state for each of them and its own in between;
        # torch.manual_seed would reseed the GPU as well.
        state = torch.Generator().manual_seed(rng.getrandbits(63)).get_state()
        for sample in read_shards(urls, self.shuffle, tag):
            if isinstance(sample, Sample):
                with torch.random.fork_rng(devices=[]):
                    torch.random.set_rng_state(state)
                    image = load_image(sample, self.transform)
                    state = torch.random.get_rng_state()
                if isinstance(image, Tensor):
                    images.append(image)
                    captions.append(rng.choice(sample.captions))
                else:
                    skipped.append(image)
            else:
                skipped.append(sample)
            if len(skipped) > max(100, 10 * self.batch_size) and not images:
                first = skipped[0]
                raise NothingReadableError(
                    f"no readable sample among the last {len(skipped)}; first: {first.key}: {first.reason}"
                )
            if len(images) == self.batch_size:
                encoded = self.encoder.encode(captions)
                yield collate(encoded, self.encoder.pad_id, torch.stack(images), skipped=skipped)
                images, captions, skipped = [], [], []


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
