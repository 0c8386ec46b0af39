import pytest

from data_prep.bank.mining.filter import filter_words
from data_prep.bank.mining.visual_senses import VisualSenses
from tests.unit.data_prep.mining.corpus import RULES, photo, words_of


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("dog", None),
        ("people", None),
        ("campfire", None),  # an event that can be seen
        ("idea", "invisible"),
        ("top", "stop"),
        ("tank top", None),  # listed by itself, whatever its head
        ("mountain top", "stop"),
        ("big idea", "invisible"),
        ("tan dog", None),
        ("green", "no noun"),
        ("shirtless", "no noun"),
        ("play time play", "no noun"),
        ("blorp", None),
        ("hot-dog stand 3", "no word"),
        ("--", "no word"),
        ("x", "no word"),
        ("t-shirt", None),
    ],
)
def test_what_can_be_seen(wordnet, word, reason):
    words = words_of([photo(word)] * 2, wordnet)
    filtered = filter_words(words, frozenset({"top"}), VisualSenses(wordnet), RULES)
    assert filtered.dropped.get(word) == reason
    assert (word in filtered.kept) == (reason is None)


def test_a_verb_that_was_taken_for_a_plural(wordnet):
    photos = [photo("child swings/child swing", "swing, swing")] * 5
    words = words_of(photos, wordnet)
    assert filter_words(words, frozenset(), VisualSenses(wordnet), RULES).dropped == {"child swing": "verb"}
    photos = [photo("tire swings/tire swing", "tire swing")] * 5
    assert filter_words(words_of(photos, wordnet), frozenset(), VisualSenses(wordnet), RULES).dropped == {}


@pytest.mark.parametrize(
    ("word", "inflected"),
    [
        ("drinks water", True),  # a verb
        ("splashing water", True),
        ("dogs mouth", True),  # a possessive
        ("big dogs mouth", True),
        ("cats kayaker", True),  # whatever is known of its head
        ("dog face", False),
        ("glasses ball", False),  # in the dictionary as it is written
        ("building wall", False),  # a verb, too, but one that can be seen
        ("glass ball", False),
        ("blorps ball", False),
    ],
)
def test_a_verb_or_a_possessive_that_was_taken_for_a_part_of_the_noun(wordnet, word, inflected):
    rare, frequent = (words_of([photo(word)] * count, wordnet) for count in (RULES.min_count - 1, RULES.min_count))
    expected = {word: "inflected"} if inflected else {}
    assert filter_words(rare, frozenset(), VisualSenses(wordnet), RULES).dropped == expected
    assert filter_words(frequent, frozenset(), VisualSenses(wordnet), RULES).dropped == {}
    assert filter_words(rare, frozenset(), None, RULES).dropped == {}


def test_words_in_too_few_captions_are_not_judged(wordnet):
    words = words_of([photo("dog"), photo("cat"), photo("cat")], wordnet)
    assert filter_words(words, frozenset({"dog"}), VisualSenses(wordnet), RULES).dropped == {"dog": "rare"}
