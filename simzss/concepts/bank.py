"""Concept bank: nouns that count as concepts, synonyms grouped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simzss.concepts.concept import Concept
from simzss.errors import DataError


@dataclass(frozen=True)
class Entry:
    """One concept: its name and other lemmas with the same meaning."""

    name: str
    synonyms: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """Return the name and its synonyms."""
        return (self.name, *self.synonyms)


def read_entries(path: Path) -> list[Entry]:
    """Read a word list: one entry a line, `name, synonym, synonym`; `#` starts a comment.

    Raises:
        DataError: file missing or not UTF-8, no entry in it, an empty name, a word that stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except FileNotFoundError as error:
        raise DataError(f"word list {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"word list {path} cannot be read: {error}") from error
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        words = [" ".join(word.lower().split()) for word in line.split(",")]
        if not all(words):
            raise DataError(f"{path}:{number}: empty name in {line!r}")
        for word in words:
            if word in seen:
                raise DataError(f"{path}:{number}: {word!r} is listed twice (first on line {seen[word]})")
            seen[word] = number
        entries.append(Entry(words[0], tuple(words[1:])))
    if not entries:
        raise DataError(f"word list {path} has no entries")
    return entries


class ConceptBank:
    """Map nouns to concept ids by exact string equality with a name or a synonym.

    Args:
        entries: the concepts; a concept's id is its index in this list.
        surface_forms: match words as written before their lemma, so that "glasses" can be another concept than
            "glass" and "woods" than "wood". The original SimZSS release matches lemmas only.
    """

    def __init__(self, entries: Sequence[Entry], surface_forms: bool = False) -> None:
        self.entries = tuple(entries)
        self.surface_forms = surface_forms
        self._ids = {word: i for i, entry in enumerate(self.entries) for word in entry.words}

    @classmethod
    def from_file(cls, path: Path, exclude: Iterable[str] = (), surface_forms: bool = False) -> "ConceptBank":
        """Read a bank and leave out every entry of which any word is in `exclude` (leakage control).

        Raises:
            DataError: as `read_entries`, or nothing is left.
        """
        removed = {" ".join(word.lower().split()) for word in exclude}
        entries = read_entries(path)
        kept = [entry for entry in entries if not removed.intersection(entry.words)]
        if not kept:
            raise DataError(f"concept bank {path}: every entry is excluded")
        return cls(kept, surface_forms)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the concept names; index = concept id."""
        return tuple(entry.name for entry in self.entries)

    def lookup(self, concept: Concept) -> int | None:
        """Return the concept id of a mention, or None when the bank does not hold it."""
        if self.surface_forms and (found := self._ids.get(concept.text.lower())) is not None:
            return found
        return self._ids.get(concept.lemma)
