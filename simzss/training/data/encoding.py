"""Captions to token ids and to the tokens of their concepts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from simzss.concepts.align import token_span
from simzss.concepts.bank import ConceptBank
from simzss.concepts.concept import Caption
from simzss.models.text import TextEncoder

_BLOCK = 8192  # captions tokenised at a time; the tokenizer's output takes kilobytes for each


@dataclass(frozen=True)
class EncodedCaption:
    """Token ids of a caption and its bank concepts as (concept id, first token, one past the last)."""

    input_ids: tuple[int, ...]
    concepts: tuple[tuple[int, int, int], ...]


@dataclass
class CaptionStatistics:
    """Counts of captions and of their concepts."""

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
        bank: concepts that count; None: none (LiT).
    """

    def __init__(self, text_encoder: TextEncoder, bank: ConceptBank | None) -> None:
        self.tokenizer = text_encoder.tokenizer
        self.context_length = text_encoder.context_length
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.bank = bank
        self.statistics = CaptionStatistics()

    def encode(self, captions: Sequence[Caption]) -> list[EncodedCaption]:
        """Encode captions; `statistics` counts concepts that the bank lacks or that truncation cut off."""
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

    def encode_groups(self, groups: Sequence[Sequence[Caption]]) -> list[list[EncodedCaption]]:
        """Encode the captions of many images, in long lists: the tokenizer takes these on all cores."""
        captions = [caption for group in groups for caption in group]
        encoded = (one for i in range(0, len(captions), _BLOCK) for one in self.encode(captions[i : i + _BLOCK]))
        return [list(islice(encoded, len(group))) for group in groups]

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
