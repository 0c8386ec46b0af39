"""Merge words that are one concept."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .evidence import Evidence
from .filter import FilteredWords
from .hyponyms import HyponymGroup
from .rules import Rules
from .visual_senses import VisualSenses
from .words import Words, letters, parts, root_of


@dataclass(frozen=True)
class Merge:
    """A word that is no concept of its own.

    Attributes:
        word: the word.
        into: the word that it joins.
        reason: "number", "spelling", "synonym", "fold", "kind" or "compound".
        share: of the word's photos whose other captions use the other word; None where too few photos can tell.
    """

    word: str
    into: str
    reason: str
    share: float | None = None


def group(
    words: Words,
    filtered: FilteredWords,
    evidence: Evidence,
    hyponym_groups: Sequence[HyponymGroup],
    visual: VisualSenses | None,
    rules: Rules,
) -> list[Merge]:
    """Return the merges of words that are one concept, by word; a word without a merge is a concept of its own."""
    grouping = _Grouping(words, filtered, evidence, visual, rules)
    grouping.settle_meanings()
    for hyponyms in hyponym_groups:
        grouping.fold(hyponyms)
    grouping.join_spellings()
    grouping.join_synonyms()
    grouping.join_kinds()
    return [grouping.merges[word] for word in sorted(grouping.merges)]


class _Grouping:
    """The state of `group`: senses of the words, and the merges so far."""

    def __init__(
        self, words: Words, filtered: FilteredWords, evidence: Evidence, visual: VisualSenses | None, rules: Rules
    ) -> None:
        self.words = words
        self.evidence = evidence
        self.visual = visual
        self.rules = rules
        self.unmerged = set(filtered.kept)
        self.meaning = dict(filtered.meaning)
        self.merges = {word: Merge(word, into, "number") for word, into in words.merged.items()}
        self.parents = dict(words.merged)
        self.refused: set[tuple[str, str]] = set()

    def settle_meanings(self) -> None:
        """Let the photos choose a meaning where tagged text leaves it open.

        The dictionary does not know whether a bike is a bicycle or a motorcycle; the other captions of its photos do.
        """
        if self.visual is None:
            return
        by_meaning: dict[str, list[str]] = {}
        for word, synset in self.meaning.items():
            by_meaning.setdefault(synset, []).append(word)
        chosen: dict[str, str] = {}
        for word in self.meaning:
            known = self.words.listed(word)
            if self.visual.settled(known):
                continue
            weights = self.visual.weights(known)
            shares = {
                synset: max((self._share(word, rival) or 0.0 for rival in by_meaning.get(synset, ())), default=0.0)
                for synset in weights
            }
            best = max(weights, key=lambda synset: (shares[synset], weights[synset]))
            if shares[best] >= self.rules.denied:
                chosen[word] = best
        self.meaning.update(chosen)

    def fold(self, hyponyms: HyponymGroup) -> None:
        """Merge hyponyms into their noun; a word that the photos refuse loses that sense."""
        assert self.visual is not None
        for word, share in hyponyms.fold().items():
            if word in self.unmerged:
                self._join(word, hyponyms.noun, "fold", share)
        for word in sorted(hyponyms.asked & self.unmerged):
            self.refused.add((word, hyponyms.noun))
            if word in self.meaning and hyponyms.has(self.meaning[word]):
                left = self.visual.meaning(self.words.listed(word), without=hyponyms.has)
                del self.meaning[word]
                if left is not None:
                    self.meaning[word] = left

    def join_spellings(self) -> None:
        """Merge words of the same letters, unless they mean different things."""
        for first, *others in self._equal(self.unmerged, letters):
            for word in others:
                if self.meaning.get(word) == self.meaning.get(first):
                    self._join(word, first, "spelling")

    def join_synonyms(self) -> None:
        """Merge words of one meaning, unless the photos say otherwise or neither they nor the dictionary know."""
        for first, *others in self._equal(self.unmerged & self.meaning.keys(), self.meaning.__getitem__):
            for word in others:
                share = self._share(word, first)
                if self._sure(word) and self._sure(first):
                    yes = share is None or share >= self.rules.denied
                else:
                    yes = share is not None and share >= self.rules.likely
                if yes:
                    self._join(word, first, "synonym", share)

    def join_kinds(self) -> None:
        """Merge words, rare ones first, into a more general one: their head, or what they are a kind of."""
        for word in sorted(self.unmerged, key=lambda word: (self.words.counts[word], word)):
            others = self.evidence.pairs.get(word, ())
            roots = {other: root for other in others if (root := root_of(other, self.parents)) != word}
            above = self._above(word, roots)
            found = self._backed(word, above) or self._by_head(word, roots) or self._nearest(word, above)
            if found is not None and (word, roots[found.into]) not in self.refused:
                self._join(word, roots[found.into], found.reason, found.share)

    def _above(self, word: str, others: Iterable[str]) -> dict[str, int]:
        """Return the more frequent hypernyms of a word, nearest first, with the steps between their senses."""
        if self.visual is None or word not in self.meaning:
            return {}
        counts, kinds = self.words.counts, self.visual.lexicon.kinds(self.meaning[word])
        steps = {other: kinds.get(self.meaning.get(other, ""), 0) for other in others if counts[other] > counts[word]}
        above = [other for other in steps if steps[other] > 0 and not self._most_general(other)]
        return {other: steps[other] for other in sorted(above, key=lambda other: (steps[other], -counts[other], other))}

    def _backed(self, word: str, above: Iterable[str]) -> Merge | None:
        """Merge into the hypernym that most photos of the word use besides."""
        shares = {other: self._share(word, other) or 0.0 for other in above}
        best = max(shares, key=lambda other: shares[other], default=word)
        if shares.get(best, 0.0) < self.rules.same:
            return None
        return Merge(word, best, "compound" if best == parts(word)[1] else "kind", shares[best])

    def _by_head(self, word: str, others: Iterable[str]) -> Merge | None:
        """Merge a compound into its head, unless it may be a name of its own, such as "hot dog"."""
        head = parts(word)[1]
        if head == word or head not in others:
            return None
        share = self._share(word, head)
        rare = self.words.counts[word] < self.rules.min_count
        if word in self.meaning or (self.visual is None and not rare):
            one = share is not None and share >= self.rules.same
        else:
            one = share is None or share >= self.rules.denied
        return Merge(word, head, "compound", share) if one else None

    def _nearest(self, word: str, above: dict[str, int]) -> Merge | None:
        """Merge a rare word into its most frequent direct hypernym, where the dictionary is sure of both."""
        near = [other for other, steps in above.items() if steps == 1 and self._sure(other)]
        rare = self.words.counts[word] < self.rules.min_count
        return Merge(word, near[0], "kind") if rare and near and self._sure(word) else None

    def _join(self, word: str, into: str, reason: str, share: float | None = None) -> None:
        self.merges[word] = Merge(word, into, reason, share)
        self.parents[word] = into
        self.unmerged.discard(word)

    def _equal(self, words: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
        """Return words of equal key, two or more, the most frequent first; in a fixed order."""
        groups: dict[str, list[str]] = {}
        for word in sorted(words, key=lambda word: (-self.words.counts[word], word)):
            groups.setdefault(key(word), []).append(word)
        return [groups[name] for name in sorted(groups) if len(groups[name]) > 1]

    def _share(self, word: str, other: str) -> float | None:
        return self.evidence.share(word, other, self.rules.witnesses)

    def _sure(self, word: str) -> bool:
        """Tell whether the dictionary leaves little doubt about what the word means."""
        assert self.visual is not None
        meaning = self.meaning[word]
        return self.visual.share(self.words.listed(word), lambda synset: synset == meaning) >= self.rules.sure

    def _most_general(self, word: str) -> bool:
        """Tell whether a word is one of the dictionary's beginnings: "sandwich" must not be merged into "food"."""
        assert self.visual is not None
        senses = self.visual.lexicon.senses(self.words.listed(word))
        return any(sense.synset == self.meaning[word] and sense.lexname == "noun.Tops" for sense in senses)
