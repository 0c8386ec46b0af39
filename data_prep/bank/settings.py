"""Settings of the program."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from simzss.settings.base import Settings
from simzss.settings.types import Positive, Strings

from .mining.rules import Rules


class BankSettings(Settings):
    """Measure how a concept bank covers annotated captions, or propose a bank from them.

    simzss prep bank captions=DIR bank=FILE
    simzss prep bank captions=DIR propose=FILE report=FILE.html
    """

    captions: str
    """folder of shards, or a pattern of them"""
    bank: str = "concepts/banks/everyday.txt"
    """word list to measure, or to compare a proposed one with"""
    exclude: Strings = []
    """benchmarks whose class names leave the bank, such as [voc20,ade20k]"""
    surface_forms: bool = True
    """match words as written before their lemma"""
    output: Path | None = None
    """the whole report as JSON"""
    top: Positive = 30
    """length of the printed lists"""
    propose: Path | None = None
    """bank to write: frequent nouns, merged by number, spelling, WordNet's synonyms and hyponyms"""
    report: Path | None = None
    """HTML page about the proposed bank"""
    size: Positive = Rules.size
    """concepts in the proposed bank at most"""
    min_count: Positive = Rules.min_count
    """captions that mention a concept at least"""
    synonym_count: Positive = Rules.synonym_count
    """captions that mention a word at least"""
    fold: Strings = list(Rules.fold)
    """nouns that all their hyponyms are merged into"""
    stop: str = "concepts/stop.txt"
    """word list of what is no concept"""
    wordnet: str | None = None
    """WordNet dict folder; null: nltk's; none: do without"""
    max_words: Positive = 1_000_000
    """lemmas that are counted at once"""

    @model_validator(mode="after")
    def _proposes(self) -> Self:
        if self.report is not None and self.propose is None:
            raise ValueError("report=FILE is a page about a proposed bank: give propose=FILE, too")
        return self

    @property
    def rules(self) -> Rules:
        """Return the thresholds of the mining."""
        return Rules(self.size, self.min_count, self.synonym_count, tuple(self.fold))
