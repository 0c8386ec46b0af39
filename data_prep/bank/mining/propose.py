"""Propose a bank from a corpus."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from simzss.concepts.bank import Entry

from .counts import Counts, Photo
from .evidence import Evidence, candidate_pairs
from .filter import FilteredWords, filter_words
from .groups import Merge, group
from .hyponyms import HyponymGroup
from .rules import Rules
from .select import entries_of, select, tally_of
from .visual_senses import Lexicon, VisualSenses
from .words import Words, root_of, word_table


@dataclass(frozen=True)
class Chosen:
    """One concept of the bank, how many captions mention it, and how often it is mentioned."""

    entry: Entry
    captions: int
    mentions: int


@dataclass(frozen=True)
class Mined:
    """A proposed bank and how it came about.

    Attributes:
        concepts: the bank, most frequent first.
        words: the words of the corpus.
        merges: words that are no concept of their own, by word.
        dropped: words that are not in the bank, to the reason: those of `FilteredWords`, "excluded", "size".
        counts: what was counted.
        first: see `Tally`.
    """

    concepts: list[Chosen]
    words: Words
    merges: list[Merge]
    dropped: dict[str, str]
    counts: Counts
    first: Counter[int]


def mine(
    photos: Iterable[Photo],
    stop: frozenset[str],
    excluded: frozenset[str],
    lexicon: Lexicon | None,
    rules: Rules,
    limit: int = 1_000_000,
) -> Mined:
    """Propose a bank.

    Args:
        photos: the corpus; it is gone through four times, in memory that does not grow with it.
        stop: words that are no concepts.
        excluded: words whose concepts are left out whole, as `ConceptBank.from_file` does (leakage control).
        lexicon: None merges by number, spelling and compound alone, and takes every word for visible.
        rules: numbers that decide.
        limit: most lemmas that are counted at once.
    """
    counts = Counts(limit)
    for photo in photos:
        counts.add(photo)
    visual = VisualSenses(lexicon) if lexicon is not None else None
    words = word_table(counts, visual, rules)
    filtered = filter_words(words, stop, visual, rules)
    merges = merges_of(photos, words, filtered, visual, rules)
    parents = {merge.word: merge.into for merge in merges}
    # A plural of a dropped word is dropped with it.
    merges = [merge for merge in merges if root_of(merge.word, parents) not in filtered.dropped]
    entries = entries_of(words, filtered.kept, {merge.word: merge.into for merge in merges}, rules)
    chosen, out = select(photos, entries, excluded, rules)
    tally = tally_of(photos, (entries[root] for root in chosen))
    concepts = [Chosen(entries[root], tally.captions[i], tally.mentions[i]) for i, root in enumerate(chosen)]
    dropped = _dropped(words, parents, {**filtered.dropped, **out}, rules)
    return Mined(concepts, words, merges, dropped, counts, tally.first)


def merges_of(
    photos: Iterable[Photo], words: Words, filtered: FilteredWords, visual: VisualSenses | None, rules: Rules
) -> list[Merge]:
    """Merge words that are one concept, by what the captions of a photo say about each other."""
    evidence = Evidence(words, candidate_pairs(words, filtered, visual))
    hyponym_groups = []
    if visual is not None:
        nouns = [noun for noun in rules.fold if noun in filtered.kept and visual.lexicon.senses(noun)]
        hyponym_groups = [HyponymGroup(noun, words, filtered, visual, rules) for noun in nouns]
    for photo in photos:
        evidence.add(photo)
        for hyponyms in hyponym_groups:
            hyponyms.add(photo)
    return group(words, filtered, evidence, hyponym_groups, visual, rules)


def _dropped(words: Words, parents: Mapping[str, str], reasons: Mapping[str, str], rules: Rules) -> dict[str, str]:
    """Return words that are not in the bank, with the reason of the word that they join in the end."""
    dropped: dict[str, str] = {}
    for word in sorted(words.counts):
        reason = reasons.get(root_of(word, parents))
        if reason is None and word in parents and words.counts[word] < rules.synonym_count:
            reason = "rare"
        if reason is not None:
            dropped[word] = reason
    return dropped
