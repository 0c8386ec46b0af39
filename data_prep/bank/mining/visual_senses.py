"""Select the senses of a noun that can be seen, by a dictionary."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

_VISIBLE = {
    "noun.animal", "noun.artifact", "noun.body", "noun.food", "noun.location", "noun.object", "noun.person",
    "noun.plant", "noun.substance",
}  # fmt: skip
# What WordNet files under events, groups, signals and the like though it fills pixels: a noun, its broad kind.
_VISIBLE_KINDS = (
    ("person", "noun.Tops"), ("animal", "noun.Tops"), ("plant", "noun.Tops"), ("food", "noun.Tops"),
    ("people", "noun.group"), ("gathering", "noun.group"), ("team", "noun.group"), ("family", "noun.group"),
    ("animal group", "noun.group"), ("vegetation", "noun.group"),
    ("fire", "noun.event"), ("fire", "noun.process"), ("wave", "noun.event"), ("splash", "noun.event"),
    ("precipitation", "noun.phenomenon"), ("smoke", "noun.phenomenon"), ("cloud", "noun.phenomenon"),
    ("light", "noun.phenomenon"), ("rainbow", "noun.phenomenon"), ("shadow", "noun.state"),
    ("visual signal", "noun.communication"), ("sign", "noun.communication"),
)  # fmt: skip
_SETTLED = 3.0  # weight of a meaning from which tagged text settles what a noun means
_SENSES = 6  # of a noun, in the lexicon's order: hardly anybody uses the later ones, which would let "support" be seen


class Sense(Protocol):
    """One sense of a noun: see `bank.wordnet.Sense`."""

    @property
    def synset(self) -> str: ...  # noqa: D102
    @property
    def lexname(self) -> str: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102


class Lexicon(Protocol):
    """A dictionary of nouns: see `bank.wordnet.WordNet`."""

    def senses(self, word: str) -> Sequence[Sense]: ...  # noqa: D102
    def kinds(self, synset: str) -> Mapping[str, int]: ...  # noqa: D102
    def members(self, synset: str) -> Sequence[str]: ...  # noqa: D102
    def base(self, form: str, part: Literal["n", "v"] = "n") -> str | None: ...  # noqa: D102
    def other_part_of_speech(self, word: str) -> bool: ...  # noqa: D102


class VisualSenses:
    """The visual senses of a dictionary's nouns.

    Args:
        lexicon: the dictionary.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self._weights: dict[str, dict[str, float]] = {}
        self._roots = {
            sense.synset
            for noun, lexname in _VISIBLE_KINDS
            for sense in lexicon.senses(noun)
            if sense.lexname == lexname
        }

    def weights(self, word: str) -> dict[str, float]:
        """Return the visual senses of a noun with their weight, in the lexicon's order; empty if none can be seen.

        The weight is the number of tagged uses plus 1 / rank: nouns of daily life often have no tagged use at all.
        """
        if word not in self._weights:
            self._weights[word] = {
                sense.synset: weight
                for sense, weight in self._weighed(word)
                if sense.lexname in _VISIBLE or not self._roots.isdisjoint(self.lexicon.kinds(sense.synset))
            }
        return self._weights[word]

    def meaning(self, word: str, without: Callable[[str], bool] = lambda _: False) -> str | None:
        """Return the likeliest visual sense, some of them left out."""
        weights = {synset: weight for synset, weight in self.weights(word).items() if not without(synset)}
        return max(weights, key=lambda synset: weights[synset]) if weights else None

    def settled(self, word: str) -> bool:
        """Tell whether tagged text is enough to know what the noun means."""
        return max(self.weights(word).values(), default=0.0) >= _SETTLED

    def share(self, word: str, wanted: Callable[[str], bool]) -> float:
        """Return the share of a noun's uses, visible or not, that mean a wanted synset."""
        weighed = self._weighed(word)
        total = sum(weight for _, weight in weighed)
        return sum(weight for sense, weight in weighed if wanted(sense.synset)) / total if total else 0.0

    def share_a_meaning(self, first: str, second: str) -> bool:
        """Tell whether two nouns have a sense in common, visible or not."""
        a, b = ({sense.synset for sense in self._senses(word)} for word in (first, second))
        return not a.isdisjoint(b)

    def _weighed(self, word: str) -> list[tuple[Sense, float]]:
        return [(sense, sense.count + 1 / rank) for rank, sense in enumerate(self._senses(word), start=1)]

    def _senses(self, word: str) -> Sequence[Sense]:
        return self.lexicon.senses(word)[:_SENSES]
