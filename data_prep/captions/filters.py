"""Which captions and images are left out, and in which words that is counted. The only py3langid import."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from simzss.errors import InputError, nearest

EXACT_COPY = "exact copy of an earlier image"
NEAR_COPY = "near copy of an earlier image"
EVALUATION_COPY = "near copy of an evaluation photo"
NO_CONCEPT = "no caption with a noun concept"

MAX_DISTANCE = 16
"""Of perceptual hashes, in bits: among 100,000 unrelated images most have one that is as near as this."""
_PARSER_LIMIT = 1_000_000  # characters, from which on spaCy refuses a text
_DECODER_LIMIT = 89  # megapixels, above which `decode_image` refuses a file


@dataclass(frozen=True)
class Filters:
    """`conf/filters`: what is left out; null is off.

    Args:
        min_words: fewest words of a caption, as spaces divide it.
        max_words: most words of a caption.
        max_characters: most characters of a caption.
        languages: ISO 639 codes of the languages that stay, null for all.
        language_confidence: a caption goes when another language is found with at least this probability.
        without_concepts: whether images stay none of whose captions has a noun concept.
        min_side: smallest short side of an image, in pixels.
        max_aspect: largest ratio of its long side to its short side.
        max_megapixels: most pixels of an image, in millions; one with more is not decoded.
        exact_duplicates: what becomes of later images of the same bytes: keep, drop, or merge (their captions go to
            the first).
        near_duplicates: an image goes whose perceptual hash differs by at most so many bits from that of an earlier
            one that stays.
        evaluation_root: folders with evaluation sets; an image near one of their photos goes.
        evaluation_distance: bits by which it differs at most.

    Raises:
        InputError: a value that cannot be, or languages without the package that tells them apart.
    """

    min_words: int | None
    max_words: int | None
    max_characters: int
    languages: str | Sequence[str] | None
    language_confidence: float
    without_concepts: bool
    min_side: int | None
    max_aspect: float | None
    max_megapixels: float
    exact_duplicates: str
    near_duplicates: int | None
    evaluation_root: str | Sequence[str] | None
    evaluation_distance: int

    def __post_init__(self) -> None:
        for key in ("min_words", "max_words", "min_side"):
            self._check(key, _is_whole(getattr(self, key), 1), "must be a whole number from 1, or null", optional=True)
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise InputError(f"filters.min_words={self.min_words} is above filters.max_words={self.max_words}")
        limit = f"must be a whole number from 1 to {_PARSER_LIMIT}, which is all that the parser takes"
        self._check("max_characters", _is_whole(self.max_characters, 1, _PARSER_LIMIT), limit)
        self._check("language_confidence", _is_number(self.language_confidence, 0, 1), "must be from 0 to 1")
        self._check("without_concepts", isinstance(self.without_concepts, bool), "must be true or false")
        self._check("max_aspect", _is_number(self.max_aspect, 1), "must be a number from 1, or null", optional=True)
        megapixels = _is_number(self.max_megapixels, 0, _DECODER_LIMIT) and self.max_megapixels > 0
        self._check("max_megapixels", megapixels, f"must be above 0 and at most {_DECODER_LIMIT}")
        duplicates = self.exact_duplicates in ("keep", "drop", "merge")
        self._check("exact_duplicates", duplicates, "must be keep, drop or merge")
        bits = f"must be a whole number from 0 to {MAX_DISTANCE}"
        near = _is_whole(self.near_duplicates, 0, MAX_DISTANCE)
        self._check("near_duplicates", near, f"{bits}, or null", optional=True)
        self._check("evaluation_distance", _is_whole(self.evaluation_distance, 0, MAX_DISTANCE), bits)
        roots = _is_texts(self.evaluation_root)
        self._check("evaluation_root", roots, "must be a folder, a list of folders, or null", optional=True)
        codes = _is_texts(self.languages)
        self._check("languages", codes, "must be a list of codes such as [en], or null", optional=True)
        if self.languages is not None:
            known = language_identifier().labels
            for code in _listed(self.languages):
                if code not in known:
                    raise InputError(f"filters.languages: {code!r} is unknown; {nearest(code, known)}")

    @property
    def looks_for_duplicates(self) -> bool:
        """Whether images are compared with one another."""
        return self.exact_duplicates != "keep" or self.near_duplicates is not None

    @property
    def evaluation_roots(self) -> tuple[Path, ...]:
        """Folders with evaluation sets, none when off."""
        return tuple(Path(root) for root in _listed(self.evaluation_root))

    def _check(self, key: str, good: bool, wanted: str, optional: bool = False) -> None:
        value = getattr(self, key)
        if not good and not (optional and value is None):
            raise InputError(f"filters.{key}={value} {wanted}")


def caption_reason(text: str, filters: Filters) -> str | None:
    """Why a caption is left out before it is parsed, None when it stays."""
    if len(text) > filters.max_characters:
        return f"more than {filters.max_characters} characters"
    words = len(text.split())
    if filters.min_words is not None and words < filters.min_words:
        return f"fewer than {filters.min_words} words"
    if filters.max_words is not None and words > filters.max_words:
        return f"more than {filters.max_words} words"
    if filters.languages is not None:
        language, probability = language_identifier().classify(text)
        if language not in _listed(filters.languages) and probability >= filters.language_confidence:
            return f"language other than {', '.join(_listed(filters.languages))}"
    return None


def image_reason(size: tuple[int, int], filters: Filters) -> str | None:
    """Why an image of (width, height) pixels is left out before it is decoded, None when it stays."""
    short, long = sorted(size)
    if short * long > filters.max_megapixels * 1e6:
        return pixels_reason(filters)
    if filters.min_side is not None and short < filters.min_side:
        return f"short side below {filters.min_side} pixels"
    if filters.max_aspect is not None and long > filters.max_aspect * short:
        return f"long side more than {filters.max_aspect:g} times the short side"
    return None


def pixels_reason(filters: Filters) -> str:
    """Why an image that has too many pixels is left out."""
    return f"more than {filters.max_megapixels:g} megapixels"


@cache
def language_identifier() -> Any:
    """What tells languages apart, read once per process: `classify(text)` gives a code and its probability.

    Raises:
        InputError: its package is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise InputError("filters.languages needs py3langid: pip install 'simzss[prep]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _listed(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One text, or several, as a tuple."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _is_texts(value: Any) -> bool:
    """Whether a value is a text or a list of texts, none of them empty."""
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list | tuple) and bool(texts) and all(isinstance(text, str) and text for text in texts)


def _is_whole(value: Any, low: int, high: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float, high: float = float("inf")) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
