import random
from itertools import pairwise

import pytest

from simzss.concepts.align import token_span
from tests.support.language import tokenizer

# "a photo of a tennis racket" behind a start token, before an end token and two of padding.
OFFSETS = [(0, 0), (0, 1), (2, 7), (8, 10), (11, 12), (13, 19), (20, 26), (0, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [(0, 1, (1, 2)), (2, 7, (2, 3)), (13, 26, (5, 7)), (20, 26, (6, 7)), (0, 26, (1, 7)), (12, 13, None)],
)
def test_whole_words(start, end, span):
    assert token_span(OFFSETS, start, end) == span


def test_subword_tokens_and_tokens_that_reach_over_the_edges():
    offsets = [(0, 0), (0, 3), (3, 5), (5, 9), (9, 12), (0, 0)]
    assert token_span(offsets, 3, 9) == (2, 4)
    assert token_span(offsets, 4, 7) == (2, 4)
    assert token_span(offsets, 4, 5) == (2, 3)


def test_token_that_touches_the_concept_is_not_part_of_it():
    assert token_span([(0, 3), (3, 6), (6, 9)], 3, 6) == (1, 2)


def test_tokens_without_characters_never_count():
    assert token_span([(0, 0), (0, 4), (0, 0)], 0, 4) == (1, 2)
    assert token_span([(0, 2), (3, 3), (3, 5)], 3, 5) == (2, 3)
    assert token_span([(0, 0), (0, 0)], 0, 4) is None


def test_truncated_concept_has_no_span():
    cut = [*OFFSETS[:6], (0, 0)]  # the end token stands where "racket" stood
    assert token_span(cut, 13, 26) is None
    assert token_span(cut, 20, 26) is None
    assert token_span(cut, 13, 19) == (5, 6)


def test_same_as_character_sets():
    rng = random.Random(0)
    for _ in range(500):
        cuts = sorted(rng.sample(range(30), rng.randint(2, 10)))
        tokens = [(a + rng.choice((0, 0, 1)), b) for a, b in pairwise(cuts)]
        tokens = [(0, 0), *((a, b) for a, b in tokens if a < b), (0, 0)]
        start = rng.randrange(25)
        end = start + rng.randint(1, 5)
        wanted = set(range(start, end))
        touched = [i for i, (a, b) in enumerate(tokens) if wanted & set(range(a, b))]
        complete = bool(touched) and end - 1 < tokens[touched[-1]][1]
        assert token_span(tokens, start, end) == ((touched[0], touched[-1] + 1) if complete else None)


@pytest.mark.parametrize(
    ("caption", "concept", "decoded"),
    [
        ("two tennis rackets on a table", "tennis rackets", "tennis rackets"),
        ("Café tables outside", "Café tables", "café tables"),
        ("a naïve façade", "façade", "façade"),
        ("smörgåsbord with ångström", "ångström", "ångström"),
        ('"tennis racket", red', "tennis racket", "tennis racket"),
        ("don't touch the hot-dog!", "dog", "dog"),
        ("the dog's bowl", "bowl", "bowl"),
        ("a dog 🐶 and a cat", "cat", "cat"),
        ("🐶🐶 DOG", "DOG", "dog"),
        ("👨‍👩‍👧 family photo", "family photo", "family photo"),
        ("A CAFÉ.", "CAFÉ", "café"),
        ("½ pizza", "½ pizza", "½ pizza"),
        ("İİ stop sign", "stop sign", "stop sign"),
        ("a  tennis \n racket", "tennis \n racket", "tennis racket"),
    ],
)
def test_real_tokenizer_span_decodes_to_the_concept(caption, concept, decoded):
    start = caption.index(concept)
    tokens = tokenizer()(caption, return_offsets_mapping=True)
    span = token_span(tokens["offset_mapping"], start, start + len(concept))
    assert span is not None
    assert tokenizer().decode(tokens["input_ids"][slice(*span)]).strip() == decoded
    first, last = tokens["offset_mapping"][span[0]], tokens["offset_mapping"][span[1] - 1]
    assert (first[0], last[1]) == (start, start + len(concept))


def test_real_tokenizer_with_truncation():
    caption = "a photo of a tennis racket"
    whole, cut = (
        tokenizer()(caption, return_offsets_mapping=True, truncation=True, max_length=length)["offset_mapping"]
        for length in (8, 7)
    )
    assert token_span(whole, 13, 26) == (5, 7)
    assert token_span(cut, 13, 26) is None
    assert token_span(cut, 13, 19) == (5, 6)
