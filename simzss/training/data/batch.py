"""What one step of training reads: captions in blocks of like length, their concepts, and images or their features."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from simzss.data.shards import Skipped
from simzss.features.stored import StoredFeatures
from simzss.training.data.buckets import length_buckets
from simzss.training.data.encoding import EncodedCaption


@dataclass
class TextBlock:
    """b captions of like length, padded to the longest of them."""

    input_ids: Tensor  # (b, l)
    attention_mask: Tensor  # (b, l)

    def map(self, change: Callable[[Tensor], Tensor]) -> "TextBlock":
        """The same with both tensors changed: moved, pinned."""
        return TextBlock(change(self.input_ids), change(self.attention_mask))


@dataclass
class Batch:
    """B captions of I images.

    The images come as `image` (I, 3, H, W) uint8, as raw `features` from a cache, or as the `row` and `view` (I,) under
    which a cache on the device has them. Concepts are ragged: M mentions, S tokens of mentions. `skipped` lists what
    could not be read on the way.
    """

    text: tuple[TextBlock, ...]  # B captions in the order of their length
    caption_row: Tensor  # (B,) place of each caption in that order
    image_row: Tensor | None  # (B,) image of each caption; None: caption b is of image b, and no other is
    mention_image: Tensor  # (M,) image of each mention
    mention_slot: Tensor  # (M,) its running number among those of its image
    mention_concept: Tensor  # (M,) its concept id
    token: Tensor  # (S,) place of each token of a mention among the tokens of all blocks, one after another
    token_concept: Tensor  # (S,) concept id of that mention
    slots: int  # most mentions of an image; counted here, since a step that asked its device would wait for it
    image: Tensor | None = None
    features: StoredFeatures | None = None
    row: Tensor | None = None
    view: Tensor | None = None
    skipped: tuple[Skipped, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.caption_row)

    def to(self, device: torch.device) -> "Batch":
        """On another device. Lightning calls this; without it, it would copy field by field, frozen `Skipped` too."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"))

    def pin_memory(self) -> "Batch":
        """In page-locked memory; the loader calls this."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same with all tensors changed."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        if self.features is not None:
            changed["features"] = self.features.map(change)
        return replace(self, text=tuple(block.map(change) for block in self.text), **changed)


def collate(
    captions: Sequence[EncodedCaption],
    pad_id: int,
    *,
    image: Tensor | None = None,
    features: StoredFeatures | None = None,
    row: Tensor | None = None,
    view: Tensor | None = None,
    image_row: Tensor | None = None,
    skipped: Iterable[Skipped] = (),
    most_captions: int | None = None,
) -> Batch:
    """Sort captions into blocks of like length and flatten their concepts.

    Args:
        captions: B of them.
        pad_id: token that fills a block up.
        image: (I, 3, H, W) uint8.
        features: of I images.
        row: (I,) rows of the cache.
        view: (I,) views of the cache.
        image_row: (B,) image of each caption, None when each has its own.
        skipped: what was passed over.
        most_captions: captions of a block at most, None for any number.
    """
    order = sorted(range(len(captions)), key=lambda i: len(captions[i].input_ids))
    buckets = length_buckets([len(captions[i].input_ids) for i in order], most_captions)
    blocks = tuple(_block([captions[order[place]] for place in bucket], pad_id) for bucket in buckets)

    # Where the tokens of a caption begin, when all blocks are laid one after another.
    ends = accumulate(block.input_ids.numel() for block in blocks)
    begin = [0] * len(captions)
    for bucket, block, end in zip(buckets, blocks, ends, strict=True):
        for row_, place in enumerate(bucket):
            begin[order[place]] = end - block.input_ids.numel() + row_ * block.input_ids.shape[1]

    caption_row = torch.empty(len(captions), dtype=torch.long)
    caption_row[torch.tensor(order)] = torch.arange(len(captions))
    images = range(len(captions)) if image_row is None else image_row.tolist()
    seen: Counter[int] = Counter()
    mentions, tokens = [], []
    for number, caption in enumerate(captions):
        for concept_id, start, end in caption.concepts:
            mentions.append((images[number], seen[images[number]], concept_id))
            seen[images[number]] += 1
            tokens += [(begin[number] + place, concept_id) for place in range(start, end)]
    mention_image, mention_slot, mention_concept = _columns(mentions, 3)
    token, token_concept = _columns(tokens, 2)
    return Batch(
        text=blocks,
        caption_row=caption_row,
        image_row=image_row,
        mention_image=mention_image,
        mention_slot=mention_slot,
        mention_concept=mention_concept,
        token=token,
        token_concept=token_concept,
        slots=max(seen.values(), default=0),
        image=image,
        features=features,
        row=row,
        view=view,
        skipped=tuple(skipped),
    )


def _block(captions: Sequence[EncodedCaption], pad_id: int) -> TextBlock:
    """Captions padded to the longest of them."""
    length = max(len(caption.input_ids) for caption in captions)
    ids = [caption.input_ids + (pad_id,) * (length - len(caption.input_ids)) for caption in captions]
    lengths = torch.tensor([len(caption.input_ids) for caption in captions])
    return TextBlock(torch.tensor(ids), (torch.arange(length) < lengths[:, None]).long())


def _columns(records: Sequence[tuple[int, ...]], count: int) -> tuple[Tensor, ...]:
    return torch.tensor(records, dtype=torch.long).reshape(-1, count).unbind(1)


def summarise_skipped(skipped: Iterable[Skipped], examples: int = 3) -> str:
    """One line: how many samples were skipped for which reason, with examples."""
    skipped = list(skipped)
    reasons = Counter(record.reason.split(":")[0] for record in skipped)
    counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    names = ", ".join(record.key for record in skipped[:examples])
    return f"skipped {len(skipped)} samples ({counts}); first: {names}"
