"""Image transforms: PIL image -> uint8 tensor. Normalisation belongs to the backbone."""

import math
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

_RATIO = (3 / 4, 4 / 3)  # of the sides of a crop, as in the field


class Transform(Protocol):
    """What makes a tensor of a photo. Classes rather than closures: worker processes need a copy."""

    @property
    def least(self) -> int | None:
        """Pixels that each side of the photo needs for it; None for all that there are."""

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, W) uint8 of an RGB image."""


@dataclass(frozen=True)
class RandomCrop:
    """Random crop of `min_scale` to all of the image's area, resized to (3, size, size) uint8.

    No flip: a caption can say left and right (SimZSS, section 4.1).
    """

    size: int
    min_scale: float = 0.9

    @property
    def least(self) -> int:
        """So many that the smallest crop, of the least area and the flattest shape, is not enlarged."""
        return math.ceil(self.size / math.sqrt(self.min_scale * min(_RATIO)))

    def __call__(self, image: Image.Image) -> Tensor:
        """Crop by torch's own random numbers."""
        pixels = v2.functional.pil_to_tensor(image)
        crop = v2.RandomResizedCrop(self.size, (self.min_scale, 1.0), _RATIO, InterpolationMode.BICUBIC)
        return crop(pixels)


@dataclass(frozen=True)
class WholeImage:
    """The whole image squashed to (3, size, size) uint8: nothing that a caption may name is cut off."""

    size: int

    @property
    def least(self) -> int:
        """As many as it makes."""
        return self.size

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize an RGB image."""
        pixels = v2.functional.pil_to_tensor(image)
        return v2.functional.resize(pixels, [self.size, self.size], interpolation=InterpolationMode.BICUBIC)


@dataclass(frozen=True)
class ShortSide:
    """Resize so that the short side is `size`, both sides rounded to a multiple; (3, H, W) uint8."""

    size: int
    multiple: int

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize an RGB image."""
        scale = self.size / min(image.size)
        sides = [max(self.multiple, round(side * scale / self.multiple) * self.multiple) for side in image.size[::-1]]
        return v2.functional.resize(v2.functional.pil_to_tensor(image), sides, interpolation=InterpolationMode.BICUBIC)
