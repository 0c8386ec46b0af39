"""Windows of sliding-window inference."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Overlapping windows of an image, all of one shape.

    Attributes:
        image: (3, H, W) that they are cut from.
        positions: top and left of each window in pixels of the image; they form a grid.
        crops: (3, h, w) views of the image.
    """

    image: Tensor
    positions: Sequence[tuple[int, int]]
    crops: Sequence[Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a window."""
        return shape_of(self.crops[0])


def cut(image: Tensor, size: int, stride: int) -> Windows:
    """Cut an image (3, H, W) into windows of `size` pixels a side, or of the image's side where that is shorter."""
    height, width = shape_of(image)
    h, w = min(size, height), min(size, width)
    positions = [(y, x) for y in starts(height, size, stride) for x in starts(width, size, stride)]
    return Windows(image, positions, [image[:, y : y + h, x : x + w] for y, x in positions])


def starts(length: int, size: int, stride: int) -> list[int]:
    """Return the start of each window along a side: every `stride` pixels, the last one flush with the end."""
    if length <= size:
        return [0]
    return [*range(0, length - size, stride), length - size]


def shape_of(image: Tensor) -> tuple[int, int]:
    """Return height and width of a tensor (…, H, W)."""
    return image.shape[-2], image.shape[-1]
