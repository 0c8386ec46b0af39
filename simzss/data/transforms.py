"""Image transforms: PIL image -> uint8 tensor. Normalisation belongs to the backbone."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2


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
