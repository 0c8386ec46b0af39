"""Decide which captions and images are left out, and in which words that is counted."""

from .languages import language_identifier
from .settings import FilterSettings

EXACT_COPY = "exact copy of an earlier image"
NEAR_COPY = "near copy of an earlier image"
EVALUATION_COPY = "near copy of an evaluation photo"
NO_CONCEPT = "no caption with a noun concept"


def caption_reason(text: str, filters: FilterSettings) -> str | None:
    """Return why a caption is left out before it is parsed, None when it stays."""
    if len(text) > filters.max_characters:
        return f"more than {filters.max_characters} characters"
    words = len(text.split())
    if filters.min_words is not None and words < filters.min_words:
        return f"fewer than {filters.min_words} words"
    if filters.max_words is not None and words > filters.max_words:
        return f"more than {filters.max_words} words"
    if filters.languages is not None:
        language, probability = language_identifier().classify(text)
        if language not in filters.languages and probability >= filters.language_confidence:
            return f"language other than {', '.join(filters.languages)}"
    return None


def image_reason(size: tuple[int, int], filters: FilterSettings) -> str | None:
    """Return why an image of (width, height) pixels is left out before it is decoded, None when it stays."""
    short, long = sorted(size)
    if short * long > filters.max_megapixels * 1e6:
        return pixels_reason(filters)
    if filters.min_side is not None and short < filters.min_side:
        return f"short side below {filters.min_side} pixels"
    if filters.max_aspect is not None and long > filters.max_aspect * short:
        return f"long side more than {filters.max_aspect:g} times the short side"
    return None


def pixels_reason(filters: FilterSettings) -> str:
    """Return why an image that has too many pixels is left out."""
    return f"more than {filters.max_megapixels:g} megapixels"
