"""Thresholds of the mining."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """Thresholds of the mining. Shares lie between 0 and 1.

    Attributes:
        size: most concepts in the bank.
        min_count: fewest captions that mention a concept of the bank.
        synonym_count: fewest captions that mention a word of the bank, synonyms included.
        fold: nouns that their hyponyms are merged into, since a mask does not tell them apart.
        sure: share of a noun's uses that a meaning must have to count without photos that speak for it.
        certain: share of a noun's uses that must mean a kind of a folded noun to fold it with little asking.
        witnesses: fewest photos with another caption that can speak for or against a merge.
        same: share of a word's photos whose other captions use a more general word, from which the two are one.
        likely: the same for a synonym, where the dictionary is not sure of the meaning.
        denied: share below which the photos refuse a merge that the words propose.
        fold_witnesses: as `witnesses`, for folding.
        plural: share of a noun's captions that write its plural, from which the plural may be a word of its own.
    """

    size: int = 600
    min_count: int = 5
    synonym_count: int = 2
    fold: tuple[str, ...] = ("person",)
    sure: float = 0.5
    certain: float = 0.8
    witnesses: int = 10
    same: float = 0.4
    likely: float = 0.2
    denied: float = 0.08
    fold_witnesses: int = 5
    plural: float = 0.7
