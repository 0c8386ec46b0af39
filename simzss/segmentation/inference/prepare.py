"""From a photo to what the models see: without weights, so that data-loading workers can hold it."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from simzss.data.images import to_rgb
from simzss.data.transforms import ShortSide
from simzss.models.sam.sam import SamResize


@dataclass(frozen=True)
class Prepared:
    """A photo of H x W pixels, ready for the models.

    Attributes:
        size: H and W.
        pixels: (3, h, w) uint8 for the backbone.
        sam: (3, h', w') uint8 of the whole photo for SAM; None where it is not asked.
        parts: the same of each part of the photo, along its longer side; empty where the whole one serves.
    """

    size: tuple[int, int]
    pixels: Tensor
    sam: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """How photos become `Prepared`.

    Args:
        resize: for the backbone.
        sam: for SAM; None where it is not asked.
        parts: into how many parts along its longer side a photo is cut for SAM's correlation.
        whole: whether SAM sees the whole photo too where it sees parts.
    """

    resize: ShortSide
    sam: SamResize | None = None
    parts: int = 1
    whole: bool = True

    def __call__(self, photo: Image.Image) -> Prepared:
        """A photo of any size and mode."""
        photo = to_rgb(photo)
        size = (photo.height, photo.width)
        pixels = self.resize(photo)
        if self.sam is None:
            return Prepared(size, pixels)
        if self.parts == 1:
            return Prepared(size, pixels, self.sam(photo))
        parts = tuple(self.sam(photo.crop(box)) for box in _boxes(photo.width, photo.height, self.parts))
        return Prepared(size, pixels, self.sam(photo) if self.whole else None, parts)


def _boxes(width: int, height: int, parts: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of parts of equal length along the longer side; each holds at least one pixel."""
    length = max(width, height)
    cuts = [round(number * length / parts) for number in range(parts + 1)]
    starts = [min(cut, length - 1) for cut in cuts[:-1]]
    spans = [(first, max(last, first + 1)) for first, last in zip(starts, cuts[1:], strict=True)]
    return [(first, 0, last, height) if width >= height else (0, first, width, last) for first, last in spans]
