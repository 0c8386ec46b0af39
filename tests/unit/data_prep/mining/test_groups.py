import pytest

from data_prep.bank.mining import Rules
from tests.unit.data_prep.mining.corpus import merged, photo


def test_persons_are_folded_where_the_photos_agree(wordnet):
    photos = [photo("man", "person", "child, woman", "people")] * 9
    photos += [photo("runner", "man")] * 9  # a runner is whom others call a man
    photos += [photo("man, hood", "man")] * 9  # a hood is worn by a man
    photos += [photo("shepherd", "dog")] * 20  # German ones
    photos += [photo("kayaker", "man")] * 9 + [photo("blorper", "man")] * 9
    photos += [photo("crowd", "people")] * 9
    photos += [photo("dog runner")] * 2
    found = {word for word, (into, reason) in merged(photos, wordnet).items() if (into, reason) == ("person", "fold")}
    assert found == {"man", "woman", "child", "people", "runner", "dog runner", "kayaker", "crowd"}


def test_nothing_is_folded_without_the_option(wordnet):
    assert merged([photo("man", "person", "child")] * 9, wordnet, Rules(fold=())) == {}


def test_another_noun_may_be_folded(wordnet):
    photos = [photo("dog"), photo("poodle"), photo("cat")] * 2
    assert merged(photos, wordnet, Rules(fold=("animal", "dog"), min_count=1)) == {"poodle": ("dog", "fold")}


def test_spellings_are_one(wordnet):
    photos = [photo("surfboard")] * 3 + [photo("surf board")] * 2 + [photo("surf-board")] * 2 + [photo("blo rp")] * 2
    photos += [photo("blorp")] * 3
    assert merged(photos, wordnet) == {
        "surf board": ("surfboard", "spelling"),
        "surf-board": ("surfboard", "spelling"),
        "blo rp": ("blorp", "spelling"),
    }


def test_synonyms_are_one_unless_the_photos_refuse(wordnet):
    few = [photo("couch")] * 9 + [photo("sofa")] * 8
    assert merged(few, wordnet) == {"sofa": ("couch", "synonym")}
    many = [photo("couch", "wall")] * 29 + [photo("sofa", "wall")] * 20
    assert merged(many, wordnet) == {}
    agreed = [photo("couch", "wall")] * 29 + [photo("sofa", "couch")] * 2 + [photo("sofa", "wall")] * 18
    assert merged(agreed, wordnet) == {"sofa": ("couch", "synonym")}


def test_a_doubtful_synonym_needs_photos(wordnet):
    photos = [photo("hoop", "wall")] * 20
    assert merged(photos + [photo("ring", "wall")] * 15, wordnet) == {}
    assert merged(photos + [photo("ring", "hoop")] * 15, wordnet) == {"ring": ("hoop", "synonym")}


@pytest.mark.parametrize(("called", "other"), [("bicycle", "motorcycle"), ("motorcycle", "bicycle")])
def test_photos_tell_which_of_two_meanings_a_word_has(wordnet, called, other):
    photos = [photo("bike", called)] * 15 + [photo("bike", "wall")] * 5 + [photo(other, "wall")] * 20
    assert merged(photos, wordnet) == {called: ("bike", "synonym")}


def test_a_kind_joins_where_the_photos_use_the_general_word(wordnet):
    photos = [photo("dog", "wall")] * 90
    assert merged(photos + [photo("poodle", "dog")] * 10 + [photo("poodle", "wall")] * 10, wordnet) == {
        "poodle": ("dog", "kind")
    }
    assert merged(photos + [photo("poodle", "dog")] * 5 + [photo("poodle", "wall")] * 15, wordnet) == {}


def test_a_kind_joins_nothing_that_is_most_general(wordnet):
    photos = [photo("animal, food", "wall")] * 90 + [photo("dog", "animal"), photo("hot dog", "food")] * 20
    assert merged(photos, wordnet) == {}


def test_a_rare_kind_joins_the_next_general_word_only(wordnet):
    photos = [photo("dog")] * 9 + [photo("toy poodle")] * 2
    assert merged(photos, wordnet) == {}
    assert merged([*photos, *[photo("poodle")] * 3], wordnet) == {
        "poodle": ("dog", "kind"),
        "toy poodle": ("poodle", "kind"),
    }


def test_compounds(wordnet):
    photos = [photo("dog, ball, face", "wall")] * 50
    photos += [photo("tan dog")] * 30  # no name: joins its head without being asked
    photos += [photo("tennis ball", "ball")] * 20  # a name, but others say ball
    photos += [photo("hot dog", "dog, wall")] * 4 + [photo("hot dog", "wall")] * 16  # a name of its own
    photos += [photo("rock face", "wall")] * 20  # no name, but others never say face
    assert merged(photos, wordnet) == {"tan dog": ("dog", "compound"), "tennis ball": ("ball", "compound")}


def test_without_a_dictionary(wordnet):
    photos = [photo("dog, dogs, ball", "wall")] * 50
    photos += [photo("tan dog")] * 4  # rare
    photos += [photo("big dog")] * 30  # frequent, and no photo tells
    photos += [photo("tennis ball", "ball")] * 20
    assert merged(photos, None) == {
        "dogs": ("dog", "number"),
        "tan dog": ("dog", "compound"),
        "tennis ball": ("ball", "compound"),
    }
