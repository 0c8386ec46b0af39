"""Count how often a corpus mentions each noun."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from simzss.concepts.concept import Caption

Mention = tuple[str, str]
"""Lower-case text and lemma of one concept."""

Photo = Sequence[Sequence[Mention]]
"""The mentions of every caption of one photo."""


@dataclass
class Counts:
    """Captions that hold each lemma, and each way to write it.

    Args:
        limit: most lemmas held, which bounds the memory; above it the rarest are forgotten. A lemma that comes back
            starts at 0, so its count is then too low.

    Attributes:
        forgotten: captions that mentioned a lemma which was forgotten later, summed over lemmas.
    """

    limit: int = 1_000_000
    photos: int = 0
    captions: int = 0
    mentions: int = 0
    forgotten: int = 0
    lemmas: Counter[str] = field(default_factory=Counter)
    forms: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, photo: Photo) -> None:
        """Count the captions of one photo."""
        self.photos += 1
        for mentions in photo:
            self.captions += 1
            self.mentions += len(mentions)
            for text, lemma in set(mentions):
                self.forms.setdefault(lemma, Counter())[text] += 1
            self.lemmas.update({lemma for _, lemma in mentions})
        if len(self.lemmas) > self.limit:
            self._forget()

    def _forget(self) -> None:
        """Forget the rarest lemmas until at most half of the limit is left."""
        floor = 0
        while len(self.lemmas) > self.limit // 2:
            floor += 1
            for lemma in [lemma for lemma, count in self.lemmas.items() if count <= floor]:
                self.forgotten += self.lemmas.pop(lemma)
                del self.forms[lemma]


def mentions_of(captions: Iterable[Caption], surface_forms: bool = True) -> list[list[Mention]]:
    """Return the mentions of each caption of a photo; without surface forms the lemma stands for the text."""
    return [
        [(concept.text.lower() if surface_forms else concept.lemma, concept.lemma) for concept in caption.concepts]
        for caption in captions
    ]
