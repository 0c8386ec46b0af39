from data_prep.bank.mining.filter import filter_words
from data_prep.bank.mining.hyponyms import HyponymGroup
from data_prep.bank.mining.visual_senses import VisualSenses
from tests.unit.data_prep.mining.corpus import RULES, photo, random_photos, words_of


def test_family_evidence_against_all_pairs_of_captions(wordnet):
    photos = random_photos(2, ["man", "woman", "person", "hood", "runner", "dog"])
    words, visual = words_of(photos, wordnet), VisualSenses(wordnet)
    hyponyms = HyponymGroup("person", words, filter_words(words, frozenset(), visual, RULES), visual, RULES)
    assert hyponyms.certain == {"person", "man", "woman"} and hyponyms.likely == {"hood", "runner"}
    for each in photos:
        hyponyms.add(each)
    for word in sorted(hyponyms.asked):
        seen = yes = captions = alone = 0
        for each in photos:
            sets = [{lemma for _, lemma in caption} for caption in each]
            captions += sum(word in one for one in sets)
            alone += sum(word in one and not (one - {word}) & hyponyms.certain for one in sets)
            if len(sets) > 1 and any(word in one for one in sets):
                seen += 1
                yes += any(
                    word in one and (other - {word}) & hyponyms.certain
                    for i, one in enumerate(sets)
                    for j, other in enumerate(sets)
                    if i != j
                )
        assert hyponyms.evidence(word) == (yes / seen, alone / captions)


def test_photos_can_refuse_what_is_nearly_always_one_but_is_not_settled(wordnet):
    def folded(photos):
        words, visual = words_of(photos, wordnet), VisualSenses(wordnet)
        hyponyms = HyponymGroup("person", words, filter_words(words, frozenset(), visual, RULES), visual, RULES)
        for each in photos:
            hyponyms.add(each)
        return hyponyms.fold()

    # The dictionary knows one meaning of a shepherd, seldom used; tagged text leaves no doubt about a woman.
    for word, whatever in (("shepherd", False), ("woman", True)):
        named, not_named = [photo(word, "man")], [photo(word, "dog")]
        assert folded(named * 4 + not_named * 6)[word] == 0.4
        assert folded(named * 3 + not_named * 7).get(word) == (0.3 if whatever else None)
        assert folded(not_named * (RULES.fold_witnesses - 1))[word] is None  # too few to refuse
