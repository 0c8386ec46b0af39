"""Which refinement runs on the class probabilities, `conf/refine`."""

from dataclasses import dataclass

from simzss.errors import InputError, nearest

KINDS = ("none", "pamr")


@dataclass(frozen=True)
class Refinement:
    """How class probabilities are refined with the pixels of the photo.

    Args:
        kind: `none`; `pamr`: pixel-adaptive mask refinement, `simzss.segmentation.refine.pamr`.
        iterations: how often a pixel takes the mean of its neighbours.
        dilations: distances of the neighbours in pixels, eight neighbours at each.
    """

    kind: str = "none"
    iterations: int = 10
    dilations: tuple[int, ...] = (8, 16)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"refine.kind={self.kind} is unknown; {nearest(self.kind, KINDS)}")
        if self.iterations < 1:
            raise InputError(f"refine.iterations={self.iterations} must be at least 1")
        if not self.dilations:
            raise InputError("refine.dilations is empty")
        for dilation in self.dilations:
            if not isinstance(dilation, int) or dilation < 1:  # what a list holds, the configuration does not check
                raise InputError(f"refine.dilations={list(self.dilations)}: {dilation!r} is no whole number above 0")
