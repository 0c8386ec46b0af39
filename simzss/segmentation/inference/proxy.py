"""SAM's embedding of a whole image as proxy features of the backbone's windows (`proxy=sam`)."""

from torch import Tensor

from simzss.models.sam.sam import SamEncoding
from simzss.models.sam.sampling import bilinear, centres


def window_proxy(
    encoding: SamEncoding, position: tuple[int, int], window: tuple[int, int], image: tuple[int, int]
) -> Tensor:
    """Sample the part of an image's embedding that a window shows, on cells as large as the embedding's.

    Args:
        encoding: of the whole image.
        position: top and left of the window in pixels of the resized image.
        window: its height and width.
        image: height and width of the resized image.

    Returns:
        (G, h, w), bilinear between the cells of the embedding.
    """
    at = []
    for axis in (0, 1):
        scale = encoding.cells[axis] / image[axis]  # cells per pixel
        count = max(1, round(window[axis] * scale))
        at.append(centres(count, window[axis] * scale) + position[axis] * scale)
    return bilinear(encoding.embedding, *at)
