"""Blocks of a stream to batches, in the training process."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from simzss.data.shards import Skipped
from simzss.training.data.batch import Batch, collate
from simzss.training.data.encoding import EncodedCaption
from simzss.training.data.images import Pixels
from simzss.training.data.prefetch import is_stopped
from simzss.training.data.stream import StreamBlock


def assemble(blocks: Iterable[StreamBlock], images: int, pad_id: int, micro_batch: int | None) -> Iterator[Batch]:
    """Cut consecutive blocks into batches; the rest of a block begins the next one.

    The workers of a loader start at once, in the thread that calls this.

    Args:
        blocks: a loader or any other source.
        images: of a batch.
        pad_id: padding token.
        micro_batch: images, and captions, through the towers at a time; None: any number.

    Yields:
        Batches with what was skipped since the one before; what is skipped after the last whole batch is in none.
    """
    return _batches(iter(blocks), _PartialBatch(images, pad_id, micro_batch))


def _batches(blocks: Iterator[StreamBlock], partial: "_PartialBatch") -> Iterator[Batch]:
    with ending_workers(blocks):
        for block in blocks:
            if is_stopped():
                return
            partial.skipped += block.skipped
            taken = 0
            while taken < len(block.captions):
                taken += partial.take(block, taken)
                if partial.full:
                    yield partial.finish()


@contextmanager
def ending_workers(blocks: Iterator[Any]) -> Iterator[None]:
    """End the workers of a loader's iterator on the way out.

    They end with it when it is dropped. But what an error comes out of is in a circle with the error's traceback until
    the garbage collector finds it, and that closes the queues first: no word reaches the workers then, and torch waits
    five seconds for each before it kills it.
    """
    try:
        yield
    finally:
        end = getattr(blocks, "_shutdown_workers", None)  # torch has no public name for it
        if end is not None:
            end()


class _PartialBatch:
    """A batch that is being filled; the images of blocks are copied to their place in it and exist nowhere else."""

    def __init__(self, images: int, pad_id: int, micro_batch: int | None) -> None:
        self.images = images
        self.pad_id = pad_id
        self.micro_batch = micro_batch
        self.skipped: list[Skipped] = []
        self._pixels: Tensor | None = None
        self._captions: list[tuple[EncodedCaption, ...]] = []

    @property
    def full(self) -> bool:
        return len(self._captions) == self.images

    def take(self, block: StreamBlock, first: int) -> int:
        """Copy images of a block from its `first` on, as many as there is room for; return their number."""
        if self._pixels is None:
            # Pinned where the blocks are. A new one for each batch: its reader may still have the one before.
            shape = (self.images, *block.pixels.shape[1:])
            self._pixels = torch.empty(shape, dtype=block.pixels.dtype, pin_memory=block.pixels.is_pinned())
        done = len(self._captions)
        count = min(self.images - done, len(block.captions) - first)
        self._pixels[done : done + count] = block.pixels[first : first + count]
        self._captions += block.captions[first : first + count]
        return count

    def finish(self) -> Batch:
        """Return the batch and begin another one; nothing of this one is kept."""
        pixels, captions, skipped = self._pixels, self._captions, self.skipped
        assert pixels is not None
        self._pixels, self._captions, self.skipped = None, [], []
        image_of = [image for image, several in enumerate(captions) for _ in several]
        batch = collate(
            [caption for several in captions for caption in several],
            self.pad_id,
            Pixels(pixels, self.micro_batch),
            image_index=torch.tensor(image_of) if len(image_of) > self.images else None,
            skipped=skipped,
            max_captions=self.micro_batch,
        )
        return batch.pin_memory() if pixels.is_pinned() else batch  # the images stay where they are
