import random
from collections import Counter

import pytest

from simzss.concepts.bank import ConceptBank, Entry
from simzss.concepts.concept import Caption, Concept
from simzss.concepts.mining import (
    Counts,
    Evidence,
    Family,
    Rules,
    Tally,
    candidate_pairs,
    entries_of,
    group,
    judge,
    mentions_of,
    mine,
    select,
    word_table,
)
from simzss.concepts.wordnet import WordNet
from tests.support.wordnet import Dictionary, Meaning

NOUNS = [
    Meaning(["entity"], "noun.Tops"),
    Meaning(["person:6833"], "noun.Tops", ["entity"]),
    Meaning(["people:257"], "noun.group", ["entity"], members=["person"]),
    Meaning(["social group"], "noun.group", ["entity"]),
    Meaning(["gathering"], "noun.group", ["social group"]),
    Meaning(["crowd:35"], "noun.group", ["gathering"]),
    Meaning(["man:749"], "noun.person", ["person"]),
    Meaning(["woman:143"], "noun.person", ["person"]),
    Meaning(["child:50", "kid:5"], "noun.person", ["person"]),
    Meaning(["runner"], "noun.person", ["person"]),
    Meaning(["runner"], "noun.artifact", ["entity"]),
    Meaning(["hood"], "noun.person", ["person"]),
    Meaning(["hood"], "noun.artifact", ["entity"]),
    Meaning(["shepherd:1"], "noun.person", ["person"]),
    Meaning(["animal"], "noun.Tops", ["entity"]),
    Meaning(["dog:42"], "noun.animal", ["animal"]),
    Meaning(["poodle"], "noun.animal", ["dog"]),
    Meaning(["toy poodle"], "noun.animal", ["poodle"]),
    Meaning(["cat:18"], "noun.animal", ["animal"]),
    Meaning(["food"], "noun.Tops", ["entity"]),
    Meaning(["hot dog", "hotdog"], "noun.food", ["food"]),
    Meaning(["ball:20"], "noun.artifact", ["entity"]),
    Meaning(["tennis ball"], "noun.artifact", ["ball"]),
    Meaning(["couch:5", "sofa:5"], "noun.artifact", ["entity"]),
    Meaning(["motorcycle", "bike"], "noun.artifact", ["entity"]),
    Meaning(["bicycle:5", "bike"], "noun.artifact", ["entity"]),
    Meaning(["ringing:9", "ring:9"], "noun.event", ["entity"]),
    Meaning(["hoop:3", "ring"], "noun.artifact", ["entity"]),
    Meaning(["glass:9"], "noun.substance", ["entity"]),
    Meaning(["glasses:4"], "noun.artifact", ["entity"]),
    Meaning(["short"], "noun.event", ["entity"]),
    Meaning(["shorts"], "noun.artifact", ["entity"]),
    Meaning(["clothes"], "noun.artifact", ["entity"]),
    Meaning(["surfboard"], "noun.artifact", ["entity"]),
    Meaning(["pit bull"], "noun.animal", ["dog"]),
    Meaning(["bikini"], "noun.artifact", ["entity"]),
    Meaning(["vase"], "noun.artifact", ["entity"]),
    Meaning(["jean"], "noun.artifact", ["entity"]),
    Meaning(["jacket"], "noun.artifact", ["entity"]),
    Meaning(["wall"], "noun.artifact", ["entity"]),
    Meaning(["face:90"], "noun.body", ["entity"]),
    Meaning(["kayak"], "noun.artifact", ["entity"]),
    Meaning(["swing"], "noun.artifact", ["entity"]),
    Meaning(["top:20"], "noun.location", ["entity"]),
    Meaning(["tank top"], "noun.artifact", ["entity"]),
    Meaning(["fire:43"], "noun.event", ["entity"]),
    Meaning(["campfire"], "noun.event", ["fire"]),
    Meaning(["idea:60"], "noun.cognition", ["entity"]),
    Meaning(["grass"], "noun.plant", ["entity"]),
]


RULES = Rules()


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    dictionary = Dictionary(
        NOUNS, ["swing", "play", "run"], ["green"], {"children": "child", "people": "people", "clothes": "clothes"}
    )
    return WordNet(dictionary.write(tmp_path_factory.mktemp("wordnet")))


def photo(*captions: str) -> list[list[tuple[str, str]]]:
    """A photo of captions, each a list of mentions: `dog, cats/cat`."""
    return [
        [
            tuple(mention.split("/")) if "/" in mention else (mention, mention)
            for mention in caption.split(", ")
            if mention
        ]
        for caption in captions
    ]  # type: ignore[misc]


def counted(photos, limit=1_000_000) -> Counts:
    counts = Counts(limit)
    for each in photos:
        counts.add(each)
    return counts


def words_of(photos, lexicon, rules=RULES):
    return word_table(counted(photos), lexicon, rules)


def merged(photos, lexicon, rules=RULES, stop=()):
    """Word to (what it joined, why), by all steps up to the grouping."""
    words = words_of(photos, lexicon, rules)
    judgement = judge(words, frozenset(stop), lexicon, rules)
    evidence = Evidence(words, candidate_pairs(words, judgement, lexicon, rules))
    nouns = [noun for noun in rules.fold if noun in judgement.kept and lexicon is not None]
    families = [Family(noun, words, judgement, lexicon, rules) for noun in nouns]
    for each in photos:
        evidence.add(each)
        for family in families:
            family.add(each)
    return {
        merge.word: (merge.into, merge.reason) for merge in group(words, judgement, evidence, families, lexicon, rules)
    }


def random_photos(seed, names="abcdefgh", count=200):
    rng = random.Random(seed)
    return [
        photo(*(", ".join(rng.choices(names, k=rng.randint(0, 4))) for _ in range(rng.randint(1, 4))))
        for _ in range(count)
    ]


# ------------------------------------------------------------------------------------------------------ counting


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


# --------------------------------------------------------------------------------------------------------- words


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


# ------------------------------------------------------------------------------------------------------- judging


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
    judgement = judge(words, frozenset({"top"}), wordnet, RULES)
    assert judgement.dropped.get(word) == reason
    assert (word in judgement.kept) == (reason is None)


def test_a_verb_that_was_taken_for_a_plural(wordnet):
    photos = [photo("child swings/child swing", "swing, swing")] * 5
    words = words_of(photos, wordnet)
    assert judge(words, frozenset(), wordnet, RULES).dropped == {"child swing": "verb"}
    photos = [photo("tire swings/tire swing", "tire swing")] * 5
    assert judge(words_of(photos, wordnet), frozenset(), wordnet, RULES).dropped == {}


def test_words_in_too_few_captions_are_not_judged(wordnet):
    words = words_of([photo("dog"), photo("cat"), photo("cat")], wordnet)
    assert judge(words, frozenset({"dog"}), wordnet, RULES).dropped == {"dog": "rare"}


# ------------------------------------------------------------------------------------------------------ evidence


def test_shares_against_all_pairs_of_captions():
    photos = random_photos(1)
    words = words_of(photos, None)
    names = sorted(words.counts)
    evidence = Evidence(words, {a: frozenset(names) - {a} for a in names})
    for each in photos:
        evidence.add(each)
    for a in names:
        for b in names:
            if a == b:
                continue
            seen = yes = 0
            for each in photos:
                sets = [{lemma for _, lemma in caption} for caption in each]
                if len(sets) > 1 and any(a in one for one in sets):
                    seen += 1
                    yes += any(
                        a in sets[i] and b in sets[j] for i in range(len(sets)) for j in range(len(sets)) if i != j
                    )
            assert evidence.share(a, b, 1) == yes / seen
            assert evidence.share(a, b, seen + 1) is None


def test_nothing_is_known_of_words_that_were_not_asked():
    photos = [photo("a", "b")] * 20
    evidence = Evidence(words_of(photos, None), {"a": frozenset({"b"})})
    for each in photos:
        evidence.add(each)
    assert evidence.share("a", "b", 10) == 1 and evidence.share("b", "a", 10) is None


def test_family_evidence_against_all_pairs_of_captions(wordnet):
    photos = random_photos(2, ["man", "woman", "person", "hood", "runner", "dog"])
    words = words_of(photos, wordnet)
    family = Family("person", words, judge(words, frozenset(), wordnet, RULES), wordnet, RULES)
    assert family.certain == {"person", "man", "woman"} and family.likely == {"hood", "runner"}
    for each in photos:
        family.add(each)
    for word in sorted(family.asked):
        seen = yes = captions = alone = 0
        for each in photos:
            sets = [{lemma for _, lemma in caption} for caption in each]
            captions += sum(word in one for one in sets)
            alone += sum(word in one and not (one - {word}) & family.certain for one in sets)
            if len(sets) > 1 and any(word in one for one in sets):
                seen += 1
                yes += any(
                    word in one and (other - {word}) & family.certain
                    for i, one in enumerate(sets)
                    for j, other in enumerate(sets)
                    if i != j
                )
        assert family.evidence(word) == (yes / seen, alone / captions)


# ------------------------------------------------------------------------------------------------------ grouping


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


# ----------------------------------------------------------------------------------------------------- selecting


def test_entries_list_frequent_words_first_and_leave_out_rare_ones(wordnet):
    photos = [photo("shorts/short")] * 9 + [photo("tan short")] * 3 + [photo("red short")] * 4 + [photo("old short")]
    words = words_of(photos, wordnet)
    judgement = judge(words, frozenset(), wordnet, RULES)
    evidence = Evidence(words, candidate_pairs(words, judgement, wordnet, RULES))
    merges = group(words, judgement, evidence, [], wordnet, RULES)
    entries = entries_of(words, judgement.kept, merges, RULES)
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


# -------------------------------------------------------------------------------------------------------- mining

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
        "rare", "no word", "stop", "invisible", "no noun", "verb", "excluded", "size"
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
