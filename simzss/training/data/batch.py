"""Batches of the training step: captions in blocks of similar length, their concepts, and their images."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from simzss.data.shards import Skipped
from simzss.training.data.buckets import length_buckets
from simzss.training.data.encoding import EncodedCaption
from simzss.training.data.images import BatchImages


@dataclass
class TextBlock:
    """b captions of similar length, padded to the longest of them.

    Attributes:
        input_ids: (b, l).
        attention_mask: (b, l).
    """

    input_ids: Tensor
    attention_mask: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "TextBlock":
        """Return a copy with a function applied to both tensors."""
        return TextBlock(change(self.input_ids), change(self.attention_mask))


@dataclass
class Batch:
    """B captions of I images with M mentions of concepts, which have S tokens. Concepts are ragged: nothing is padded.

    Attributes:
        text: the captions, in the order of their length.
        caption_index: (B,) position of each caption in that order.
        images: I of them.
        image_index: (B,) image of each caption; None: caption b belongs to image b.
        mention_image: (M,) image of each mention.
        mention_position: (M,) running number of each mention among those of its image.
        mention_concept: (M,) concept id.
        max_mentions: of an image; counted here, since a step that asked its device would wait for it.
        token_index: (S,) index of each token of a mention among the tokens of all blocks, concatenated.
        token_concept: (S,) concept id of its mention.
        skipped: samples that could not be read on the way.
    """

    text: tuple[TextBlock, ...]
    caption_index: Tensor
    images: BatchImages
    image_index: Tensor | None
    mention_image: Tensor
    mention_position: Tensor
    mention_concept: Tensor
    max_mentions: int
    token_index: Tensor
    token_concept: Tensor
    skipped: tuple[Skipped, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.caption_index)

    def to(self, device: torch.device) -> "Batch":
        """Return a copy on another device. Lightning calls this; else it would copy field by field."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"))

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked memory."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return a copy with a function applied to every tensor."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        text = tuple(block.map(change) for block in self.text)
        return replace(self, text=text, images=self.images.map(change), **changed)


def collate(
    captions: Sequence[EncodedCaption],
    pad_id: int,
    images: BatchImages,
    *,
    image_index: Tensor | None = None,
    skipped: Iterable[Skipped] = (),
    max_captions: int | None = None,
) -> Batch:
    """Sort captions into blocks of similar length and flatten their concepts.

    Args:
        captions: B of them.
        pad_id: padding token.
        images: I of them.
        image_index: (B,) image of each caption; None: each has its own.
        skipped: samples that could not be read.
        max_captions: of a block; None: any number.
    """
    order = sorted(range(len(captions)), key=lambda i: len(captions[i].input_ids))
    buckets = length_buckets([len(captions[i].input_ids) for i in order], max_captions)
    blocks = tuple(_block([captions[order[position]] for position in bucket], pad_id) for bucket in buckets)

    # First token of each caption in the concatenation of all blocks.
    ends = accumulate(block.input_ids.numel() for block in blocks)
    first = [0] * len(captions)
    for bucket, block, end in zip(buckets, blocks, ends, strict=True):
        for row, position in enumerate(bucket):
            first[order[position]] = end - block.input_ids.numel() + row * block.input_ids.shape[1]

    caption_index = torch.empty(len(captions), dtype=torch.long)
    caption_index[torch.tensor(order)] = torch.arange(len(captions))
    image_of = range(len(captions)) if image_index is None else image_index.tolist()
    seen: Counter[int] = Counter()
    mentions, tokens = [], []
    for number, caption in enumerate(captions):
        for concept_id, start, end in caption.concepts:
            mentions.append((image_of[number], seen[image_of[number]], concept_id))
            seen[image_of[number]] += 1
            tokens += [(first[number] + token, concept_id) for token in range(start, end)]
    mention_image, mention_position, mention_concept = _columns(mentions, 3)
    token_index, token_concept = _columns(tokens, 2)
    return Batch(
        text=blocks,
        caption_index=caption_index,
        images=images,
        image_index=image_index,
        mention_image=mention_image,
        mention_position=mention_position,
        mention_concept=mention_concept,
        max_mentions=max(seen.values(), default=0),
        token_index=token_index,
        token_concept=token_concept,
        skipped=tuple(skipped),
    )


def _block(captions: Sequence[EncodedCaption], pad_id: int) -> TextBlock:
    """Pad captions to the longest of them."""
    length = max(len(caption.input_ids) for caption in captions)
    ids = [caption.input_ids + (pad_id,) * (length - len(caption.input_ids)) for caption in captions]
    lengths = torch.tensor([len(caption.input_ids) for caption in captions])
    return TextBlock(torch.tensor(ids), (torch.arange(length) < lengths[:, None]).long())


def _columns(records: Sequence[tuple[int, ...]], count: int) -> tuple[Tensor, ...]:
    return torch.tensor(records, dtype=torch.long).reshape(-1, count).unbind(1)
