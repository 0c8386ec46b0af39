"""What is none of the classes: by a threshold on the best probability, or by words for what surrounds them."""

from dataclasses import dataclass

from simzss.errors import InputError, nearest

KINDS = ("none", "threshold", "words", "both")


@dataclass(frozen=True)
class Background:
    """Rule for a background class, which becomes class 0.

    Args:
        kind: `none`; `threshold`: a pixel whose best class probability is below `threshold` is background;
            `words`: background competes by the best of its own words; `both` of these rules.
        threshold: probability in 0..1.
        words: what backgrounds consist of, such as sky or wall.
    """

    kind: str = "none"
    threshold: float = 0.0
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"background.kind={self.kind} is unknown; {nearest(self.kind, KINDS)}")
        if self.has_threshold and not 0 < self.threshold < 1:
            raise InputError(f"background.threshold={self.threshold} must be between 0 and 1")
        if self.has_words and not self.words:
            raise InputError("background.words is empty")

    @property
    def has_threshold(self) -> bool:
        """Whether the threshold counts."""
        return self.kind in ("threshold", "both")

    @property
    def has_words(self) -> bool:
        """Whether the words count."""
        return self.kind in ("words", "both")

    @property
    def present(self) -> bool:
        """Whether there is a background class."""
        return self.kind != "none"
