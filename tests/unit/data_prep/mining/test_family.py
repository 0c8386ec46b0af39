from data_prep.bank.mining.family import Family
from data_prep.bank.mining.judge import judge
from data_prep.bank.mining.sight import Sight
from tests.unit.data_prep.mining.corpus import RULES, photo, random_photos, words_of


def test_family_evidence_against_all_pairs_of_captions(wordnet):
    photos = random_photos(2, ["man", "woman", "person", "hood", "runner", "dog"])
    words, sight = words_of(photos, wordnet), Sight(wordnet)
    family = Family("person", words, judge(words, frozenset(), sight, RULES), sight, RULES)
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


def test_photos_can_refuse_what_is_nearly_always_one_but_is_not_settled(wordnet):
    def folded(photos):
        words, sight = words_of(photos, wordnet), Sight(wordnet)
        family = Family("person", words, judge(words, frozenset(), sight, RULES), sight, RULES)
        for each in photos:
            family.add(each)
        return family.fold()

    # The dictionary knows one meaning of a shepherd, seldom used; tagged text leaves no doubt about a woman.
    for word, whatever in (("shepherd", False), ("woman", True)):
        named, not_named = [photo(word, "man")], [photo(word, "dog")]
        assert folded(named * 4 + not_named * 6)[word] == 0.4
        assert folded(named * 3 + not_named * 7).get(word) == (0.3 if whatever else None)
        assert folded(not_named * (RULES.fold_witnesses - 1))[word] is None  # too few to refuse
