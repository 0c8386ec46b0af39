"""Captions and their noun concepts."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Concept:
    """One mention of a noun concept in a caption.

    Attributes:
        text: as written, `caption[start:end]`, such as "Tennis Rackets" of "two Tennis Rackets".
        lemma: lower-case name under which a bank knows the concept: "tennis racket".
        start: offset of the first character.
        end: offset past the last character.
    """

    text: str
    lemma: str
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Concept":
        """Invert `to_json`; a missing key raises KeyError, a surplus one is ignored."""
        return cls(str(record["text"]), str(record["lemma"]), int(record["start"]), int(record["end"]))


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and its concepts, in the order of the text."""

    text: str
    concepts: tuple[Concept, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {"text": self.text, "concepts": [concept.to_json() for concept in self.concepts]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Caption":
        """Invert `to_json`."""
        return cls(str(record["text"]), tuple(Concept.from_json(concept) for concept in record["concepts"]))
