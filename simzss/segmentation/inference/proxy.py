"""SAM's embedding of a whole image as the guide of the backbone's windows (`proxy=sam`)."""

from torch import Tensor

from simzss.models.sam.sam import SamEncoding
from simzss.models.sam.sampling import bilinear, centres


def window_guide(
    encoding: SamEncoding | None, place: tuple[int, int], window: tuple[int, int], image: tuple[int, int]
) -> Tensor:
    """The part of an image's embedding that a window sees, on cells as large as the embedding's.

    Args:
        encoding: of the whole image.
        place: top and left of the window in pixels of the resized image.
        window: its height and width.
        image: height and width of the resized image.

    Returns:
        (G, h, w), bilinear between the cells of the embedding.
    """
    assert encoding is not None
    positions = []
    for axis in (0, 1):
        scale = encoding.cells[axis] / image[axis]  # cells of a pixel
        count = max(1, round(window[axis] * scale))
        positions.append(centres(count, window[axis] * scale) + place[axis] * scale)
    return bilinear(encoding.embedding, *positions)
