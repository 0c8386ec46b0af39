"""Image transforms: PIL image -> uint8 tensor. Normalisation belongs to the backbone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode, pixel for pixel: what is transparent shows white, and 16-bit grey is scaled to 8 bits."""
    # Pillow alone would clip 16 bits at 255. "I" has 32, of which these formats fill the lower 16.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        # What lies below full transparency is arbitrary, often black.
        colours = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(colours)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; with an alpha channel when one value of it means transparent."""
    pixels = np.asarray(image)
    grey = Image.fromarray((pixels >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if key is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8))))


def train_transform(size: int, min_scale: float = 0.9) -> Callable[[Image.Image], Tensor]:
    """Random crop of `min_scale` to all of the image's area, resized to (3, size, size) uint8; no flip: a caption
    can say left and right (SimZSS, section 4.1)."""  # fmt: skip
    return v2.Compose(
        [v2.PILToTensor(), v2.RandomResizedCrop(size, (min_scale, 1.0), interpolation=InterpolationMode.BICUBIC)]
    )


def whole_transform(size: int) -> Callable[[Image.Image], Tensor]:
    """The whole image squashed to (3, size, size) uint8: nothing that a caption may name is cut off."""
    return v2.Compose([v2.PILToTensor(), v2.Resize((size, size), interpolation=InterpolationMode.BICUBIC)])


@dataclass(frozen=True)
class ShortSide:
    """Resize so that the short side is `size`, both sides rounded to a multiple; (3, H, W) uint8.

    A class rather than a closure: worker processes need a copy of it.
    """

    size: int
    multiple: int

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize an RGB image."""
        scale = self.size / min(image.size)
        sides = [max(self.multiple, round(side * scale / self.multiple) * self.multiple) for side in image.size[::-1]]
        return v2.functional.resize(v2.functional.pil_to_tensor(image), sides, interpolation=InterpolationMode.BICUBIC)
