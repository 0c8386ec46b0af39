"""Which refinement runs on the class probabilities, `conf/refine`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simzss.errors import InputError, nearest
from simzss.segmentation.refine.sam import SamRefinement
from simzss.segmentation.refine.vote import RegionVote


@dataclass(frozen=True)
class PixelRefinement:
    """Pixel-adaptive mask refinement, `simzss.segmentation.refine.pamr`.

    Args:
        iterations: how often a pixel takes the mean of its neighbours.
        dilations: distances of the neighbours in pixels, eight neighbours at each.
    """

    iterations: int = 10
    dilations: tuple[int, ...] = (8, 16)

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError(f"refine.iterations={self.iterations} must be at least 1")
        if not self.dilations:
            raise InputError("refine.dilations is empty")
        for dilation in self.dilations:
            if not isinstance(dilation, int) or dilation < 1:  # what a list holds, the configuration does not check
                raise InputError(f"refine.dilations={list(self.dilations)}: {dilation!r} is no whole number above 0")


Refinement = PixelRefinement | SamRefinement | RegionVote

_KINDS: dict[str, Any] = {"pamr": PixelRefinement, "sam": SamRefinement, "vote": RegionVote}


def asks_sam(refinement: Refinement | None) -> bool:
    """Whether a refinement asks a Segment Anything model."""
    return isinstance(refinement, SamRefinement | RegionVote)


def kind_of(refinement: Refinement | None) -> str:
    """The `kind` that `build_refinement` makes it of."""
    return next((kind for kind, made in _KINDS.items() if type(refinement) is made), "none")


def build_refinement(options: Mapping[str, Any]) -> Refinement | None:
    """What a file of `conf/refine` describes by its `kind` (`none`, `pamr`, `sam`, `vote`) and the keys of that kind.

    Raises:
        InputError: an unknown kind, a value out of range.
    """
    options = dict(options)
    kind = options.pop("kind")
    if kind == "none":
        return None
    if kind not in _KINDS:
        raise InputError(f"refine.kind={kind} is unknown; {nearest(kind, ('none', *_KINDS))}")
    if "dilations" in options:
        options["dilations"] = tuple(options["dilations"])
    return _KINDS[kind](**options)
