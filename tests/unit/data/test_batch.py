from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from simzss.concepts.bank import ConceptBank, Entry
from simzss.concepts.concept import Caption, Concept
from simzss.data.batch import CaptionEncoder, EncodedCaption, collate, summarise_skipped
from simzss.data.shards import Skipped
from simzss.models.features import ImageFeatures
from tests.support.files import caption
from tests.support.language import tokenizer

BANK = ConceptBank([Entry("dog", ("puppy",)), Entry("cat"), Entry("tennis racket")])
START, END = 49406, 49407


def encoder(bank: ConceptBank | None = BANK, context_length: int = 77) -> CaptionEncoder:
    return CaptionEncoder(SimpleNamespace(tokenizer=tokenizer(), context_length=context_length), bank)


def words(ids) -> str:
    return tokenizer().decode(ids).strip()


def test_collate_pads_to_the_longest_caption():
    batch = collate([EncodedCaption((5, 6, 7), ()), EncodedCaption((8,), ()), EncodedCaption((9, 0), ())], pad_id=99)
    assert len(batch) == 3
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 99, 99], [9, 0, 99]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.long


def test_collate_mask_tells_padding_from_an_end_token_of_the_same_id():
    batch = collate([EncodedCaption((1, 7), ()), EncodedCaption((1, 2, 7), ())], pad_id=7)
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_collate_flattens_ragged_concepts_in_order():
    captions = [
        EncodedCaption((1, 2), ()),
        EncodedCaption((1, 2, 3, 4), ((30, 1, 2), (10, 2, 4))),
        EncodedCaption((1,), ()),
        EncodedCaption((1, 2), ((30, 0, 1),)),
    ]
    batch = collate(captions, 0)
    assert batch.concept_image.tolist() == [1, 1, 3]
    assert batch.concept_slot.tolist() == [0, 1, 0]
    assert batch.concept_id.tolist() == [30, 10, 30]
    assert batch.concept_start.tolist() == [1, 2, 0]
    assert batch.concept_end.tolist() == [2, 4, 1]


def test_collate_without_any_concept():
    batch = collate([EncodedCaption((1, 2), ()), EncodedCaption((1,), ())], 0)
    for name in ("image", "slot", "id", "start", "end"):
        values = getattr(batch, f"concept_{name}")
        assert values.shape == (0,)
        assert values.dtype == torch.long


def test_collate_passes_on_images_features_and_skipped():
    captions, skipped = [EncodedCaption((1,), ())], [Skipped("a", "b")]
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    features = ImageFeatures(torch.zeros(1, 2), torch.zeros(1, 4, 2), (2, 2))
    batch = collate(captions, 0, image, skipped=iter(skipped))
    assert batch.image is image and batch.features is None and batch.skipped == (Skipped("a", "b"),)
    batch = collate(captions, 0, features=features)
    assert batch.features is features and batch.image is None and batch.skipped == ()


@pytest.mark.parametrize("cached", [False, True])
def test_batch_moves_and_is_pinned_with_what_was_skipped(cached, monkeypatch):
    """By Lightning, which copies no frozen dataclass, and by the loader, which knows tensors and methods only."""
    image = None if cached else torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    features = ImageFeatures(torch.zeros(1, 4), torch.zeros(1, 2, 4), (1, 2)) if cached else None
    batch = collate([EncodedCaption((1, 2), ((0, 0, 1),))], 0, image, features, [Skipped("a", "b", "s.tar")])
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    for found in (move_data_to_device(batch, torch.device("meta")), pin_memory(batch)):
        assert found.skipped == (Skipped("a", "b", "s.tar"),)
    assert len(pinned) == (9 if cached else 8)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved.input_ids.is_meta and moved.concept_end.is_meta
    assert moved.features.patches.is_meta and moved.features.grid == (1, 2) if cached else moved.image.is_meta


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


def test_summary_of_skipped_samples():
    skipped = [Skipped(f"k{i}", "bad annotation: no. " + str(i)) for i in range(3)]
    line = summarise_skipped([*skipped, Skipped("z", "no caption")], examples=2)
    assert "skipped 4 samples" in line
    assert "3 x bad annotation" in line and "1 x no caption" in line
    assert "k0, k1" in line and "k2" not in line and "\n" not in line
