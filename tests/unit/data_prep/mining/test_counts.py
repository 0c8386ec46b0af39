from data_prep.bank.mining import mentions_of
from simzss.concepts.concept import Caption, Concept
from tests.unit.data_prep.mining.corpus import counted, photo, random_photos


def test_mentions_with_and_without_surface_forms():
    caption = Caption("Two Dogs", (Concept("Dogs", "dog", 4, 8),))
    assert mentions_of([caption]) == [[("dogs", "dog")]]
    assert mentions_of([caption], surface_forms=False) == [[("dog", "dog")]]


def test_counts_are_of_captions_not_of_mentions():
    counts = counted([photo("dog, dogs/dog, dog", "cat"), photo("", "dogs/dog")])
    assert counts.lemmas == {"dog": 2, "cat": 1}
    assert counts.forms["dog"] == {"dog": 1, "dogs": 2}
    assert (counts.photos, counts.captions, counts.mentions, counts.forgotten) == (2, 4, 5, 0)


def test_counts_against_a_plain_count():
    photos = random_photos(0)
    counts = counted(photos)
    captions = [caption for each in photos for caption in each]
    for lemma in "abcdefgh":
        assert counts.lemmas[lemma] == sum(any(mention[1] == lemma for mention in caption) for caption in captions)


def test_the_rarest_lemmas_are_forgotten_and_counted():
    frequent = [photo("dog", "cat")] * 5
    counts = counted([*frequent, *(photo(f"rare{i}, rare{i}") for i in range(100)), *frequent], limit=10)
    assert len(counts.lemmas) <= 10 and counts.lemmas.keys() == counts.forms.keys()
    assert counts.lemmas["dog"] == counts.lemmas["cat"] == 10
    assert counts.forgotten + sum(counts.lemmas.values()) == 10 + 10 + 100
