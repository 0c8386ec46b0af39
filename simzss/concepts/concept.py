"""What a concept is: a noun of a caption, with its place in the caption."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Concept:
    """One mention of a noun concept in a caption.

    `text == caption[start:end]`; `lemma` is the lower-case name under which a bank knows the concept
    ("two Tennis Rackets" -> text "Tennis Rackets", lemma "tennis racket"). Offsets count characters.
    """

    text: str
    lemma: str
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Concept":
        """Inverse of `to_json`; a missing key raises KeyError, a surplus one is ignored."""
        return cls(str(record["text"]), str(record["lemma"]), int(record["start"]), int(record["end"]))


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and its concepts, in the order of the text."""

    text: str
    concepts: tuple[Concept, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {"text": self.text, "concepts": [concept.to_json() for concept in self.concepts]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Caption":
        """Inverse of `to_json`."""
        return cls(str(record["text"]), tuple(Concept.from_json(concept) for concept in record["concepts"]))
