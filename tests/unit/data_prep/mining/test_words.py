from data_prep.bank.mining import mine
from tests.unit.data_prep.mining.corpus import RULES, photo, words_of


def test_plurals_that_the_lemmatizer_missed(wordnet):
    photos = [photo("bikini, vase, jean jacket, kid")] * 3
    photos += [photo("bikinis, vases/vas, jeans jackets/jeans jacket")] * 2
    words = words_of(photos, wordnet)
    assert words.merged == {"bikinis": "bikini", "vas": "vase", "jeans jacket": "jean jacket"}
    assert words.of(("vases", "vas")) == "vase"


def test_a_more_frequent_plural_is_no_plural_of_the_singular(wordnet):
    assert words_of([photo("bikinis")] * 3 + [photo("bikini")], wordnet).merged == {}


def test_a_plural_with_a_meaning_of_its_own(wordnet):
    photos = [photo("glasses/glass")] * 20 + [photo("glass")] * 6
    words = words_of(photos, wordnet)
    assert words.counts == {"glass": 6, "glasses": 20}
    assert words.of(("glasses", "glass")) == "glasses" and words.of(("glass", "glass")) == "glass"
    assert words_of([photo("glasses/glass")] * 20 + [photo("glass")] * 20, wordnet).counts == {"glass": 40}


def test_nouns_that_live_in_the_plural_are_named_so(wordnet):
    words = words_of([photo("shorts/short, clothes/clothe, leaves/leaf, cats/cat")] * 9 + [photo("cat")] * 9, wordnet)
    assert words.plurals == {"short": "shorts", "clothe": "clothes", "leaf": "leaves"}
    assert words.in_bank("short") == ["shorts", "short"] and words.in_bank("cat") == ["cat"]
    assert words.listed("clothe") == "clothes" and words.listed("winter clothe") == "winter clothes"
    assert words.listed("leaf") == "leaf"  # neither is in this dictionary


def test_a_plural_of_two_lemmas_stands_in_the_bank_once():
    photos = [photo("leaves/leaf")] * 9 + [photo("leaves/leave")] * 7
    assert words_of(photos, None).plurals == {"leaf": "leaves"}
    mined = mine(photos, frozenset(), frozenset(), None, RULES)
    assert [(concept.entry.words, concept.captions) for concept in mined.concepts] == [(("leaves", "leaf"), 16)]
    assert mined.dropped == {"leave": "rare"}


def test_another_spelling_of_the_dictionary(wordnet):
    words = words_of([photo("surf board, pitbull, hot-dog, blorp")] * 2, wordnet)
    found = {word: words.listed(word) for word in words.counts}
    assert found == {"surf board": "surfboard", "pitbull": "pit bull", "hot-dog": "hotdog", "blorp": "blorp"}


def test_a_text_that_is_more_than_a_plural_is_no_word():
    words = words_of([photo("tan colored dog/tan dog")] * 9, None)
    assert words.plurals == {} and words.counts == {"tan dog": 9}
