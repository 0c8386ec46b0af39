"""From a photo to the inputs of the models: without weights, so that data-loading workers can hold it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from simzss.data.images import decode_image, to_rgb
from simzss.data.transforms import ShortSide
from simzss.errors import DataError
from simzss.models.sam.sam import SamResize

Photo = str | Path | Image.Image | np.ndarray
"""An image file, a PIL image, or an array (H, W, 3), (H, W, 4) or (H, W) of uint8."""


def read_photo(photo: Photo) -> Image.Image:
    """Return a photo as an RGB image; a file's EXIF orientation is applied, as in training.

    Raises:
        DataError: a file that is missing or no image, or an array of another kind.
    """
    if isinstance(photo, Image.Image):
        return to_rgb(photo)
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim not in (2, 3) or not photo.size:
            raise DataError(f"a photo must be an array (H, W, 3) of uint8, not {photo.shape} of {photo.dtype}")
        return to_rgb(Image.fromarray(photo))
    path = Path(photo)
    if not path.is_file():
        raise DataError(f"image {path} does not exist")
    try:
        return decode_image(path)
    except ValueError as error:
        reason = str(error).removeprefix("unreadable image: ")
        raise DataError(f"{path} is no readable image: {reason}") from error


@dataclass(frozen=True)
class Prepared:
    """A photo of H x W pixels, ready for the models.

    Attributes:
        size: H and W.
        pixels: (3, h, w) uint8 for the backbone.
        sam: (3, h', w') uint8 of the whole photo for SAM; None where it is not needed.
        parts: the same of each part of the photo, along its longer side; empty where the whole one serves.
    """

    size: tuple[int, int]
    pixels: Tensor
    sam: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """Resizes photos for the models.

    Args:
        resize: for the backbone.
        sam: for SAM; None where it is not needed.
        parts: number of parts along its longer side in which SAM sees a photo.
        whole: whether SAM sees the whole photo beside its parts.
    """

    resize: ShortSide
    sam: SamResize | None = None
    parts: int = 1
    whole: bool = True

    def __call__(self, photo: Image.Image) -> Prepared:
        """Prepare a photo of any size and mode."""
        photo = to_rgb(photo)
        size = (photo.height, photo.width)
        pixels = self.resize(photo)
        if self.sam is None:
            return Prepared(size, pixels)
        if self.parts == 1:
            return Prepared(size, pixels, self.sam(photo))
        parts = tuple(self.sam(photo.crop(box)) for box in part_boxes(photo.width, photo.height, self.parts))
        return Prepared(size, pixels, self.sam(photo) if self.whole else None, parts)


def part_boxes(width: int, height: int, parts: int) -> list[tuple[int, int, int, int]]:
    """Return left, top, right, bottom of parts of equal length along the longer side; each has at least one pixel."""
    length = max(width, height)
    cuts = [round(number * length / parts) for number in range(parts + 1)]
    starts = [min(cut, length - 1) for cut in cuts[:-1]]
    spans = [(first, max(last, first + 1)) for first, last in zip(starts, cuts[1:], strict=True)]
    return [(first, 0, last, height) if width >= height else (0, first, width, last) for first, last in spans]
