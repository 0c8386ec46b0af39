from data_prep.bank.mining import Rules
from data_prep.bank.mining.select import Tally, entries_of, select
from simzss.concepts.bank import ConceptBank, Entry
from tests.unit.data_prep.mining.corpus import RULES, photo, random_photos, words_of


def test_entries_list_frequent_words_first_and_leave_out_rare_ones(wordnet):
    photos = [photo("shorts/short")] * 9 + [photo("tan short")] * 3 + [photo("red short")] * 4 + [photo("old short")]
    words = words_of(photos, wordnet)
    parents = {"tan short": "short", "red short": "tan short", "old short": "short"}
    entries = entries_of(words, {"short"}, parents, RULES)
    assert entries == {"short": Entry("shorts", ("short", "red short", "tan short"))}


def test_select_by_frequency_then_by_name():
    photos = [photo("b, a, d"), photo("b, a, c"), photo("b, e")]
    entries = {name: Entry(name) for name in "ebcad"} | {"b": Entry("b", ("x",))}
    rules = Rules(size=3, min_count=1)
    assert select(photos, entries, frozenset(), rules) == (["b", "a", "c"], {"d": "size", "e": "size"})
    assert select(photos, entries, frozenset({"x", "a"}), rules) == (
        ["c", "d", "e"],
        {"a": "excluded", "b": "excluded"},
    )
    out = {"c": "rare", "d": "rare", "e": "rare"}
    assert select(photos, entries, frozenset(), Rules(min_count=2)) == (["b", "a"], out)


def test_tally_against_a_count_for_each_size():
    photos = random_photos(4)
    entries = [Entry("c", ("d",)), Entry("a"), Entry("h"), Entry("zebra"), Entry("b")]
    tally = Tally(ConceptBank(entries, surface_forms=True))
    for each in photos:
        tally.add(each)
    captions = [[lemma for _, lemma in caption] for each in photos for caption in each]
    for i, entry in enumerate(entries):
        assert tally.mentions[i] == sum(lemma in entry.words for caption in captions for lemma in caption)
        assert tally.captions[i] == sum(any(lemma in entry.words for lemma in caption) for caption in captions)
    for size in range(len(entries) + 1):
        known = {word for entry in entries[:size] for word in entry.words}
        assert sum(tally.first[i] for i in range(size)) == sum(bool(known & set(caption)) for caption in captions)
