import random
from collections import Counter

import pytest

from data_prep.bank.mining import Rules, mine
from tests.unit.data_prep.mining.corpus import RULES, photo

CORPUS = [
    *[photo("man, dogs/dog", "person, dog", "people")] * 12,
    *[photo("poodle, grass", "dog")] * 12,
    *[photo("cats/cat, couch", "cat, sofa, top")] * 6,
    *[photo("glasses/glass, idea", "woman, glasses/glass")] * 6,
    *[photo("swing, green", "child swings/child swing")] * 7,
    *[photo("bikini, bikinis", "kid, top")] * 2,
    *[photo(f"blorp{letter}") for letter in "abc"],
    photo(""),
]


def test_a_bank_from_a_corpus(wordnet):
    mined = mine(CORPUS, frozenset({"top"}), frozenset(), wordnet, RULES)
    assert [(concept.entry.name, concept.entry.synonyms) for concept in mined.concepts] == [
        ("dog", ("poodle",)),
        ("person", ("man", "people", "woman", "kid")),
        ("cat", ()),
        ("couch", ("sofa",)),
        ("glasses", ("glass",)),
        ("grass", ()),
        ("swing", ()),
    ]
    assert [concept.captions for concept in mined.concepts] == [48, 44, 12, 12, 12, 12, 7]
    assert {word: mined.dropped[word] for word in ("top", "idea", "green", "child swing", "bikini", "bikinis")} == {
        "top": "stop",
        "idea": "invisible",
        "green": "no noun",
        "child swing": "verb",
        "bikini": "rare",
        "bikinis": "rare",
    }


@pytest.mark.parametrize("lexicon", [True, False])
@pytest.mark.parametrize("excluded", [[], ["sofa"], ["person", "cat"]])
def test_every_noun_is_in_the_bank_or_dropped_for_a_reason(wordnet, lexicon, excluded):
    mined = mine(CORPUS, frozenset({"top"}), frozenset(excluded), wordnet if lexicon else None, Rules(size=4))
    listed = Counter(word for concept in mined.concepts for word in concept.entry.words)
    assert max(listed.values()) == 1
    assert not set(excluded) & listed.keys()
    lemmas = {lemma for each in CORPUS for caption in each for _, lemma in caption}
    assert lemmas <= listed.keys() | mined.dropped.keys()
    assert not listed.keys() & mined.dropped.keys()
    assert set(mined.dropped.values()) <= {
        "rare", "no word", "stop", "invisible", "no noun", "verb", "inflected", "excluded", "size"
    }  # fmt: skip


def test_the_order_of_the_photos_does_not_matter(wordnet):
    mined = mine(CORPUS, frozenset({"top"}), frozenset(), wordnet, RULES)
    for seed in range(3):
        shuffled = list(CORPUS)
        random.Random(seed).shuffle(shuffled)
        again = mine(shuffled, frozenset({"top"}), frozenset(), wordnet, RULES)
        assert (again.concepts, again.merges, again.dropped) == (mined.concepts, mined.merges, mined.dropped)


def test_nothing_to_mine(wordnet):
    mined = mine([photo("", "")], frozenset(), frozenset(), wordnet, RULES)
    assert mined.concepts == [] and mined.counts.captions == 2
