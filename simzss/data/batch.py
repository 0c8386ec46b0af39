"""Captions to token ids and concept spans, and both with images to a batch."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from simzss.concepts.align import token_span
from simzss.concepts.bank import ConceptBank
from simzss.concepts.concept import Caption
from simzss.data.shards import Skipped
from simzss.models.features import ImageFeatures
from simzss.models.text import TextEncoder


@dataclass(frozen=True)
class EncodedCaption:
    """Token ids of a caption and its bank concepts as (concept id, first token, one past the last)."""

    input_ids: tuple[int, ...]
    concepts: tuple[tuple[int, int, int], ...]


@dataclass
class Batch:
    """B images with a caption each.

    Either `image` (B, 3, H, W) uint8 or `features` (unit vectors, from the cache) is given. Concepts are ragged: M
    mentions with their caption's row, their running number in it, concept id and half-open token range. `skipped`
    lists what could not be read on the way.
    """

    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L)
    concept_image: Tensor  # (M,)
    concept_slot: Tensor  # (M,)
    concept_id: Tensor  # (M,)
    concept_start: Tensor  # (M,)
    concept_end: Tensor  # (M,)
    image: Tensor | None = None
    features: ImageFeatures | None = None
    skipped: tuple[Skipped, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device) -> "Batch":
        """On another device. Lightning calls this; without it, it would copy field by field, frozen `Skipped` too."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pin_memory(self) -> "Batch":
        """In page-locked memory; the loader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        if self.features is not None:
            changed["features"] = self.features.map(change)
        return replace(self, **changed)


@dataclass
class CaptionStatistics:
    """What became of the concepts of a set of captions."""

    captions: int = 0
    captions_with_concept: int = 0
    mentions: int = 0
    in_bank: int = 0
    truncated: int = 0

    def __str__(self) -> str:
        share = 100 * self.captions_with_concept / max(self.captions, 1)
        return (
            f"{self.captions} captions, {share:.1f} % with a concept of the bank; {self.in_bank} of {self.mentions} "
            f"noun concepts are in the bank, {self.truncated} of them cut off by the context length"
        )


class CaptionEncoder:
    """Turns captions into token ids and token spans of the bank's concepts.

    Args:
        text_encoder: whose tokenizer and context length to use.
        bank: which lemmas count; without one there are no concepts (LiT).
    """

    def __init__(self, text_encoder: TextEncoder, bank: ConceptBank | None) -> None:
        self.tokenizer = text_encoder.tokenizer
        self.context_length = text_encoder.context_length
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.bank = bank
        self.statistics = CaptionStatistics()

    def encode(self, captions: Sequence[Caption]) -> list[EncodedCaption]:
        """Encode captions; `statistics` counts what the bank lacks and what truncation cut off."""
        tokens = self.tokenizer(
            [caption.text for caption in captions],
            truncation=True,
            max_length=self.context_length,
            return_offsets_mapping=True,
        )
        return [
            EncodedCaption(tuple(ids), self._spans(caption, offsets))
            for caption, ids, offsets in zip(captions, tokens["input_ids"], tokens["offset_mapping"], strict=True)
        ]

    def _spans(self, caption: Caption, offsets: Sequence[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
        spans = []
        for concept in caption.concepts:
            concept_id = self.bank.lookup(concept) if self.bank is not None else None
            if concept_id is None:
                continue
            self.statistics.in_bank += 1
            span = token_span(offsets, concept.start, concept.end)
            if span is None:
                self.statistics.truncated += 1
            else:
                spans.append((concept_id, *span))
        self.statistics.captions += 1
        self.statistics.mentions += len(caption.concepts)
        self.statistics.captions_with_concept += bool(spans)
        return tuple(spans)


def collate(
    captions: Sequence[EncodedCaption],
    pad_id: int,
    image: Tensor | None = None,
    features: ImageFeatures | None = None,
    skipped: Iterable[Skipped] = (),
) -> Batch:
    """Pad the token ids to the longest caption and flatten the concepts."""
    length = max(len(caption.input_ids) for caption in captions)
    input_ids = torch.full((len(captions), length), pad_id)
    attention_mask = torch.zeros(len(captions), length, dtype=torch.long)
    for row, caption in enumerate(captions):
        input_ids[row, : len(caption.input_ids)] = torch.tensor(caption.input_ids)
        attention_mask[row, : len(caption.input_ids)] = 1
    flat = [
        (row, slot, *concept) for row, caption in enumerate(captions) for slot, concept in enumerate(caption.concepts)
    ]
    rows, slots, ids, starts, ends = torch.tensor(flat, dtype=torch.long).reshape(-1, 5).unbind(1)
    return Batch(input_ids, attention_mask, rows, slots, ids, starts, ends, image, features, tuple(skipped))


def summarise_skipped(skipped: Iterable[Skipped], examples: int = 3) -> str:
    """One line: how many samples were skipped for which reason, with examples."""
    skipped = list(skipped)
    reasons = Counter(record.reason.split(":")[0] for record in skipped)
    counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    names = ", ".join(record.key for record in skipped[:examples])
    return f"skipped {len(skipped)} samples ({counts}); first: {names}"
