"""Image transforms: PIL image -> uint8 tensor. Normalisation belongs to the backbone."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

_LONG_SIDE = 2048  # as in mmsegmentation's recipes for all eight sets
_RATIO = (3 / 4, 4 / 3)  # of the sides of a crop, as in the field


class Transform(Protocol):
    """Photo -> tensor. Classes rather than closures: worker processes need a copy."""

    @property
    def min_side(self) -> int | None:
        """Return the minimum side for JPEG draft decoding in pixels; None for full size."""

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Transform an RGB image to (3, H, W) uint8; random transforms draw from the generator."""


@dataclass(frozen=True)
class RandomCrop:
    """Random crop of `min_scale` to all of the image's area, resized to (3, size, size) uint8.

    No flip: a caption can say left and right (SimZSS, section 4.1).
    """

    size: int
    min_scale: float = 0.9

    @property
    def min_side(self) -> int:
        """Return the side at which the smallest crop, of the least area and the flattest shape, is not enlarged."""
        return math.ceil(self.size / math.sqrt(self.min_scale * min(_RATIO)))

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Crop an RGB image; None draws from torch's global random state."""
        pixels = v2.functional.pil_to_tensor(image)
        box = self.box(image.width, image.height, generator)
        return v2.functional.resized_crop(pixels, *box, [self.size, self.size], InterpolationMode.BICUBIC)

    def box(self, width: int, height: int, generator: torch.Generator | None = None) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) of a crop, as `torchvision.transforms.v2.RandomResizedCrop` does."""
        low, high = torch.tensor(_RATIO).log().tolist()  # of float32, as torchvision's: the same draws
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(self.min_scale, 1.0, generator=generator).item()
            ratio = torch.empty(1).uniform_(low, high, generator=generator).exp().item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = torch.randint(0, height - h + 1, (1,), generator=generator)
                left = torch.randint(0, width - w + 1, (1,), generator=generator)
                return int(top), int(left), h, w
        # No crop of that area fits a long photo: the middle of it, as flat as a crop may be.
        h, w = min(height, round(width / _RATIO[0])), min(width, round(height * _RATIO[1]))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class WholeImage:
    """Squash the whole image to (3, size, size) uint8: nothing that a caption may name is cut off."""

    size: int

    @property
    def min_side(self) -> int:
        """Return the side of the output."""
        return self.size

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Resize an RGB image."""
        pixels = v2.functional.pil_to_tensor(image)
        return v2.functional.resize(pixels, [self.size, self.size], interpolation=InterpolationMode.BICUBIC)


@dataclass(frozen=True)
class ShortSide:
    """Resize so that the short side is `size`, both sides rounded to a multiple; (3, H, W) uint8.

    The long side ends at 2048, or at twice a `size` above 1024, as in the field's scale of (2048, size): a long photo
    becomes smaller, and never fills the memory.
    """

    size: int
    multiple: int

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize an RGB image."""
        longest = max(_LONG_SIDE, 2 * self.size)
        scale = min(self.size / min(image.size), longest / max(image.size))
        sides = [max(self.multiple, round(side * scale / self.multiple) * self.multiple) for side in image.size[::-1]]
        return v2.functional.resize(v2.functional.pil_to_tensor(image), sides, interpolation=InterpolationMode.BICUBIC)
