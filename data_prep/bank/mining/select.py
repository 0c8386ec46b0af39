"""Select the concepts that most captions mention."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from simzss.concepts.bank import ConceptBank, Entry
from simzss.concepts.concept import Concept

from .counts import Photo
from .rules import Rules
from .words import Words, root_of


@dataclass
class Tally:
    """Captions and mentions of each concept of a bank, and the first concept of each caption.

    Args:
        bank: the bank.

    Attributes:
        first: lowest concept id of a caption, to the number of such captions: with the concepts in the order of the
            bank, the captions that a shorter bank covers.
    """

    bank: ConceptBank
    captions: Counter[int] = field(default_factory=Counter)
    mentions: Counter[int] = field(default_factory=Counter)
    first: Counter[int] = field(default_factory=Counter)

    def add(self, photo: Photo) -> None:
        """Count one photo."""
        for mentions in photo:
            looked_up = [self.bank.lookup(Concept(text, lemma, 0, 0)) for text, lemma in mentions]
            found = [concept for concept in looked_up if concept is not None]
            self.mentions.update(found)
            self.captions.update(set(found))
            if found:
                self.first[min(found)] += 1


def tally_of(photos: Iterable[Photo], entries: Iterable[Entry]) -> Tally:
    """Count how often the photos mention each entry."""
    tally = Tally(ConceptBank(list(entries), surface_forms=True))
    for photo in photos:
        tally.add(photo)
    return tally


def entries_of(words: Words, kept: Iterable[str], parents: Mapping[str, str], rules: Rules) -> dict[str, Entry]:
    """Return the root of each group of words with its entry, synonyms by frequency.

    Args:
        words: the words of the corpus.
        kept: words that are concepts or join one.
        parents: word to the word that it joins.
        rules: numbers that decide.
    """
    groups: dict[str, list[str]] = {}
    for word in sorted({*kept, *parents}, key=lambda word: (-words.counts[word], word)):
        groups.setdefault(root_of(word, parents), []).append(word)
    entries = {}
    for root, members in groups.items():
        listed = [root, *(word for word in members if word != root and words.counts[word] >= rules.synonym_count)]
        name, *synonyms = (string for word in listed for string in words.in_bank(word))
        entries[root] = Entry(name, tuple(synonyms))
    return entries


def select(
    photos: Iterable[Photo], entries: Mapping[str, Entry], excluded: frozenset[str], rules: Rules
) -> tuple[list[str], dict[str, str]]:
    """Select the groups that most captions mention, and tell why the others are not in the bank.

    Returns:
        Roots of the bank, most frequent first (ties by name); the other roots to "excluded", "rare" or "size".
    """
    roots = sorted(entries, key=lambda root: entries[root].name)
    out = {root: "excluded" for root in roots if excluded.intersection(entries[root].words)}
    left = [root for root in roots if root not in out]
    captions = tally_of(photos, (entries[root] for root in left)).captions
    ranked = sorted(range(len(left)), key=lambda i: -captions[i])  # stable: ties stay by name
    frequent = [left[i] for i in ranked if captions[i] >= rules.min_count]
    out.update((left[i], "rare") for i in ranked if captions[i] < rules.min_count)
    out.update((root, "size") for root in frequent[rules.size :])
    return frequent[: rules.size], out
