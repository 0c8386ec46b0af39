"""Map the characters of a concept to tokens of its caption."""

from collections.abc import Sequence


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """Return the half-open token range that covers the characters `start:end`, by interval overlap.

    Args:
        offsets: character range of each token; special and padding tokens are empty ranges (0, 0).
        start: first character.
        end: one past the last character.

    Returns:
        (first, last + 1); None when truncation cut off any part of the text: half a concept is another word.
    """
    first = last = None
    for i, (token_start, token_end) in enumerate(offsets):
        if token_start < end and token_end > start and token_end > token_start:
            first = i if first is None else first
            last = i
    if first is None or last is None or offsets[last][1] < end:
        return None
    return first, last + 1
