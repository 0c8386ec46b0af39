from data_prep.bank.mining.evidence import Evidence
from tests.unit.data_prep.mining.corpus import photo, random_photos, words_of


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
