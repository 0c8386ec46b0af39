"""Resizing of images for Segment Anything models."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from simzss.data.images import to_rgb


@dataclass(frozen=True)
class SamResize:
    """Resize an image to what a model's `encode` takes; without weights, for use in data-loading workers.

    Attributes:
        size: side of the model's frame in pixels.
        square: stretch the image over all of the frame (SAM 2), rather than fit its long side.
    """

    size: int
    square: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize an image, bilinear: (3, h, w) uint8."""
        height, width = self.shape(image.height, image.width)
        return pil_to_tensor(to_rgb(image).resize((width, height), Image.Resampling.BILINEAR))

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width at which an image of this height and width is encoded."""
        if self.square:
            return self.size, self.size
        scale = self.size / max(height, width)
        # Rounded as the authors do it, but a very thin image keeps a pixel.
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
