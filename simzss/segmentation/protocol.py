"""The inference protocol: how an image goes through the model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simzss.errors import InputError, nearest

INFERENCE = ("whole", "slide", "splice")
MERGES = ("mean", "max")


@dataclass(frozen=True)
class Protocol:
    """How an image goes through the model, `conf/protocol`.

    Args:
        name: by which benchmarks know it.
        inference: `whole` image; `slide` a window over it and average the scores; or `splice` the features of the
            windows into one map, which is classified.
        short_side: images are resized so that the short side has so many pixels; None: as the benchmark says for this
            protocol, `crop_size` where nothing says.
        crop_size: side of a window in pixels (`slide`, `splice`).
        stride: between windows in pixels (`slide`, `splice`).
        templates: name of a set of prompt templates.
        merge: of several names of a class: the `mean` of their vectors, or the `max` of their scores.
        temperature: of the softmax over classes, where the background rule needs probabilities.
    """

    name: str
    inference: str
    short_side: int | None
    crop_size: int
    stride: int
    templates: str
    merge: str
    temperature: float

    def __post_init__(self) -> None:
        if self.inference not in INFERENCE:
            raise InputError(f"protocol.inference={self.inference} is unknown; {nearest(self.inference, INFERENCE)}")
        if self.merge not in MERGES:
            raise InputError(f"protocol.merge={self.merge} is unknown; {nearest(self.merge, MERGES)}")
        for name in ("short_side", "crop_size", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"protocol.{name}={value} must be at least 1")
        if self.stride > self.crop_size:  # pixels between the windows would have no score
            raise InputError(f"protocol.stride={self.stride} must be at most protocol.crop_size={self.crop_size}")
        if not self.temperature > 0:  # so that NaN is refused too
            raise InputError(f"protocol.temperature={self.temperature} must be above 0")

    def resolved(self, short_sides: Mapping[str, int] | None = None) -> "Protocol":
        """This protocol with a short side: its own, else the one of its name in `short_sides`, else `crop_size`."""
        if self.short_side is not None:
            return self
        return replace(self, short_side=(short_sides or {}).get(self.name, self.crop_size))


WHOLE_336 = Protocol(
    name="whole",
    inference="whole",
    short_side=336,
    crop_size=336,
    stride=224,
    templates="imagenet80",
    merge="mean",
    temperature=0.05,
)
