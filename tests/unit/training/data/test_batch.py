from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from simzss.concepts.bank import ConceptBank, Entry
from simzss.concepts.concept import Caption, Concept
from simzss.data.shards import Skipped, summarise_skipped
from simzss.features.stored import StoredFeatures
from simzss.training.data import batch as batch_module
from simzss.training.data.batch import Batch
from simzss.training.data.encoding import CaptionEncoder, EncodedCaption
from simzss.training.data.images import BatchImages, CachedFeatures, CachedRows, Pixels
from tests.support.files import caption
from tests.support.language import tokenizer

BANK = ConceptBank([Entry("dog", ("puppy",)), Entry("cat"), Entry("tennis racket")])
START, END = 49406, 49407


def encoder(bank: ConceptBank | None = BANK, context_length: int = 77) -> CaptionEncoder:
    return CaptionEncoder(SimpleNamespace(tokenizer=tokenizer(), context_length=context_length), bank)


def collate(captions, pad_id=0, images: BatchImages | None = None, **options) -> Batch:
    images = images or Pixels(torch.zeros(len(captions), 3, 2, 2, dtype=torch.uint8))
    return batch_module.collate(captions, pad_id, images, **options)


def words(ids) -> str:
    return tokenizer().decode(ids).strip()


def captions_of(*lengths: int) -> list[EncodedCaption]:
    """Return captions of so many tokens, no two alike."""
    return [EncodedCaption(tuple(range(100 * i, 100 * i + length)), ()) for i, length in enumerate(lengths)]


def test_a_block_is_padded_to_its_longest_caption():
    (block,) = collate([EncodedCaption((5, 6, 7), ()), EncodedCaption((8,), ()), EncodedCaption((9, 0), ())], 99).text
    assert block.input_ids.tolist() == [[8, 99, 99], [9, 0, 99], [5, 6, 7]]
    assert block.attention_mask.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert block.input_ids.dtype == block.attention_mask.dtype == torch.long


def test_mask_tells_padding_from_an_end_token_of_the_same_id():
    (block,) = collate([EncodedCaption((1, 7), ()), EncodedCaption((1, 2, 7), ())], pad_id=7).text
    assert block.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("size", [None, 3])
def test_every_caption_is_found_in_the_order_that_it_was_given_in(size):
    lengths = [12, 70, 3, 12, 71, 12, 3] * 20
    captions = captions_of(*lengths)
    batch = collate(captions, -1, max_captions=size)
    assert len(batch) == len(captions) and len(batch.text) > 1
    assert size is None or max(len(block.input_ids) for block in batch.text) <= size
    rows = [
        ids[mask.bool()].tolist()
        for block in batch.text
        for ids, mask in zip(block.input_ids, block.attention_mask, strict=True)
    ]
    assert [tuple(rows[index]) for index in batch.caption_index.tolist()] == [caption.input_ids for caption in captions]


def test_tokens_of_concepts_are_found_among_those_of_all_blocks():
    lengths = [40, 5, 40, 6, 5] * 60  # enough of each for two blocks
    captions = [
        EncodedCaption(caption.input_ids, ((i % 7, 1, 3), (7, 4, 5)) if i % 3 else ())
        for i, caption in enumerate(captions_of(*lengths))
    ]
    batch = collate(captions, -1)
    assert len(batch.text) > 1
    row = torch.cat([block.input_ids.flatten() for block in batch.text])
    found = list(zip(row[batch.token_index].tolist(), batch.token_concept.tolist(), strict=True))
    expected = [
        (caption.input_ids[token], concept)
        for caption in captions
        for concept, start, end in caption.concepts
        for token in range(start, end)
    ]
    assert found == expected


def test_mentions_are_ragged_and_in_order():
    captions = [
        EncodedCaption((1, 2), ()),
        EncodedCaption((1, 2, 3, 4), ((30, 1, 2), (10, 2, 4))),
        EncodedCaption((1,), ()),
        EncodedCaption((1, 2), ((30, 0, 1),)),
    ]
    batch = collate(captions, 0)
    assert batch.mention_image.tolist() == [1, 1, 3]
    assert batch.mention_position.tolist() == [0, 1, 0]
    assert batch.mention_concept.tolist() == [30, 10, 30]
    assert batch.max_mentions == 2 and batch.image_index is None


def test_mentions_of_all_captions_of_an_image_are_numbered_through():
    captions = [EncodedCaption((1, 2), ((i, 0, 1), (9, 1, 2))) for i in range(4)]
    batch = collate(captions, 0, image_index=torch.tensor([1, 0, 1, 1]))
    assert batch.mention_image.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
    assert batch.mention_position.tolist() == [0, 1, 0, 1, 2, 3, 4, 5]
    assert batch.max_mentions == 6


def test_without_any_concept():
    batch = collate([EncodedCaption((1, 2), ()), EncodedCaption((1,), ())], 0)
    for name in ("mention_image", "mention_position", "mention_concept", "token_index", "token_concept"):
        assert getattr(batch, name).shape == (0,) and getattr(batch, name).dtype == torch.long
    assert batch.max_mentions == 0


def stored(scale: torch.Tensor | None = None) -> StoredFeatures:
    return StoredFeatures(torch.zeros(1, 4), torch.zeros(1, 2, 4), scale, (1, 2))


@pytest.mark.parametrize(
    ("images", "tensors"),
    [
        (Pixels(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)), 1),
        (CachedFeatures(stored(), False), 2),
        (CachedFeatures(stored(torch.ones(1, 2)), True), 3),
        (CachedRows(torch.tensor([3]), torch.tensor([1]), SimpleNamespace()), 2),
    ],
)
def test_batch_moves_and_is_pinned_with_its_images_and_what_was_skipped(images, tensors, monkeypatch):
    """By Lightning, which copies no frozen dataclass, and by the loader, which knows tensors and methods only."""
    skipped = [Skipped("a", "b", "s.tar")]
    batch = collate([EncodedCaption((1, 2), ((0, 0, 1),))], images=images, skipped=iter(skipped))
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    moved = move_data_to_device(batch, torch.device("meta"))
    for found in (moved, pin_memory(batch)):
        assert found.skipped == tuple(skipped) and type(found.images) is type(images) and len(found.images) == 1
    assert len(pinned) == 8 + tensors
    assert moved.text[0].input_ids.is_meta and moved.text[0].attention_mask.is_meta and moved.token_concept.is_meta
    on_device = []
    moved.images.map(lambda tensor: on_device.append(tensor.is_meta) or tensor)
    assert on_device == [True] * tensors


def test_encoded_spans_hold_the_concepts_of_the_bank():
    captions = [
        Caption(
            "Two PUPPIES, a zebra and tennis rackets!",
            (
                Concept("PUPPIES", "puppy", 4, 11),
                Concept("zebra", "zebra", 15, 20),
                Concept("tennis rackets", "tennis racket", 25, 39),
            ),
        ),
        Caption("nothing", ()),
    ]
    first, second = encoder().encode(captions)
    assert [concept[0] for concept in first.concepts] == [0, 2]
    assert [words(first.input_ids[start:end]) for _, start, end in first.concepts] == ["puppies", "tennis rackets"]
    assert first.input_ids[0] == START and first.input_ids[-1] == END
    assert words(second.input_ids[1:-1]) == "nothing"
    assert second.concepts == ()


def test_statistics():
    made = encoder(context_length=6)
    assert str(made.statistics).startswith("0 captions")
    made.encode([caption("a dog and a zebra", "dog", "zebra"), caption("one cat", "cat")])
    made.encode([caption("zebra", "zebra"), caption("a b c d dog cat", "dog", "cat"), caption("x")])
    statistics = made.statistics
    assert statistics.captions == 5
    assert statistics.mentions == 6
    assert statistics.in_bank == 4
    assert statistics.truncated == 2
    assert statistics.captions_with_concept == 2
    assert "5 captions, 40.0 %" in str(statistics)
    assert "4 of 6" in str(statistics) and "2 of them" in str(statistics)


def test_truncated_caption_keeps_its_end_token_and_whole_concepts_only():
    text = "a dog beside a tennis racket"
    mentions = (Concept("dog", "dog", 2, 5), Concept("tennis racket", "tennis racket", 15, 28))
    (whole,) = encoder(context_length=8).encode([Caption(text, mentions)])
    (cut,) = encoder(context_length=7).encode([Caption(text, mentions)])
    assert [concept[0] for concept in whole.concepts] == [0, 2]
    assert len(cut.input_ids) == 7 and cut.input_ids[-1] == END
    assert cut.concepts == ((0, 2, 3),)


def test_without_bank_there_are_no_concepts():
    made = encoder(bank=None)
    (encoded,) = made.encode([caption("a dog", "dog")])
    assert encoded.concepts == ()
    assert (made.statistics.mentions, made.statistics.in_bank) == (1, 0)


def test_concept_that_stands_twice_has_two_spans():
    mentions = (Concept("dog", "dog", 2, 5), Concept("dog", "dog", 12, 15))
    (encoded,) = encoder().encode([Caption("a dog and a dog", mentions)])
    assert encoded.concepts == ((0, 2, 3), (0, 5, 6))


def test_padding_of_the_tokenizer_is_used():
    assert encoder().pad_id == tokenizer().pad_token_id == END


def test_groups_are_encoded_as_each_alone():
    groups = [(caption("a dog", "dog"), caption("cats")), (), (caption("one cat", "cat"),)]
    assert encoder().encode_groups(groups) == [encoder().encode(group) if group else [] for group in groups]


def test_summary_of_skipped_samples():
    skipped = [Skipped(f"k{i}", "bad annotation: no. " + str(i)) for i in range(3)]
    line = summarise_skipped([*skipped, Skipped("z", "no caption")], examples=2)
    assert "skipped 4 samples" in line
    assert "3 x bad annotation" in line and "1 x no caption" in line
    assert "k0, k1" in line and "k2" not in line and "\n" not in line
