"""Count what the other captions of a photo say about two words."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from .counts import Photo
from .filter import FilteredWords
from .visual_senses import VisualSenses
from .words import Words, parts


@dataclass
class Evidence:
    """Photos whose other captions use another word.

    Args:
        words: the words.
        pairs: word to the other words that are of interest.
    """

    words: Words
    pairs: Mapping[str, frozenset[str]]
    photos: Counter[str] = field(default_factory=Counter)
    together: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, photo: Photo) -> None:
        """Count one photo."""
        if len(photo) < 2:
            return
        captions = [self.words.of_caption(mentions) for mentions in photo]
        times = Counter(word for caption in captions for word in caption)
        joint: set[tuple[str, str]] = set()
        for caption in captions:
            for word in caption & self.pairs.keys():
                joint.update((word, other) for other in self.pairs[word] if times[other] > (other in caption))
        self.photos.update(times.keys() & self.pairs.keys())
        self.together.update(joint)

    def share(self, word: str, other: str, witnesses: int) -> float | None:
        """Return the share of photos of `word` whose other captions use `other`; None where too few photos can tell."""
        photos = self.photos[word]
        if photos < max(witnesses, 1) or other not in self.pairs.get(word, ()):
            return None
        return self.together[word, other] / photos


def candidate_pairs(words: Words, filtered: FilteredWords, visual: VisualSenses | None) -> dict[str, frozenset[str]]:
    """Return words that may be one concept: compound and head, words with a shared sense, a word and its hyponyms."""
    by_meaning: dict[str, list[str]] = {}
    for word, synset in filtered.meaning.items():
        by_meaning.setdefault(synset, []).append(word)
    pairs: dict[str, set[str]] = {word: set() for word in filtered.kept}
    for word in filtered.kept:
        others: set[str] = {parts(word)[1]} & filtered.kept
        if visual is not None:
            for synset in visual.weights(words.listed(word)):
                for kind in visual.lexicon.kinds(synset):
                    others.update(by_meaning.get(kind, ()))
        for other in others - {word}:  # which of the two is the more frequent one comes out later
            pairs[word].add(other)
            pairs[other].add(word)
    return {word: frozenset(others) for word, others in pairs.items() if others}
